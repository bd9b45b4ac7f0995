// Launching kernels from .cu files.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace tabes::gpu {

// Launches in order on one stream; remembers the first failure and then does nothing more.
class Launcher {
 public:
  explicit Launcher(void* stream) : stream_(static_cast<cudaStream_t>(stream)) {}

  template <typename... Parameters, typename... Arguments>
  void operator()(void (*kernel)(Parameters...), dim3 grid, int threads, int shared_bytes,
                  const Arguments&... arguments) {
    if (status_ != cudaSuccess || grid.x == 0 || grid.y == 0) return;
    // More than 48 KiB must be asked for.
    if (shared_bytes > 48 << 10) {
      status_ =
          cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes);
      if (status_ != cudaSuccess) return;
    }
    kernel<<<grid, threads, shared_bytes, stream_>>>(arguments...);
    status_ = cudaGetLastError();
  }
  int status() const { return status_; }

 private:
  cudaStream_t stream_;
  cudaError_t status_ = cudaSuccess;
};

inline unsigned blocks(int64_t count, int per_block) {
  return static_cast<unsigned>((count + per_block - 1) / per_block);
}

}  // namespace tabes::gpu
