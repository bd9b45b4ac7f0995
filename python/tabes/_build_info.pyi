# Types of the file that the build writes: the versions this package was compiled as and against.
VERSION: str
TORCH_VERSION: str
