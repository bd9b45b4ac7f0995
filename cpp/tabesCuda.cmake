# What TABES_CUDA=ON adds to the build.

# Fails where there is no compiler for the kernels.
macro(tabes_enable_cuda)
  include(CheckLanguage)
  check_language(CUDA)
  if(NOT CMAKE_CUDA_COMPILER)
    message(FATAL_ERROR
      "TABES_CUDA=ON, but there is no CUDA compiler. Install the CUDA toolkit (12.8 or newer) and put "
      "nvcc on PATH or set CUDACXX=/path/to/nvcc; or build for the CPU with -DTABES_CUDA=OFF.")
  endif()
  if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES)
    set(CMAKE_CUDA_ARCHITECTURES 80 90 100)
  endif()
  set(CMAKE_CUDA_STANDARD 20)
  set(CMAKE_CUDA_STANDARD_REQUIRED ON)
  set(CMAKE_CUDA_EXTENSIONS OFF)
  enable_language(CUDA)
  if(CMAKE_CUDA_COMPILER_VERSION VERSION_LESS 12.8)
    message(FATAL_ERROR
      "TABES_CUDA=ON needs nvcc 12.8 or newer; ${CMAKE_CUDA_COMPILER} is ${CMAKE_CUDA_COMPILER_VERSION}.")
  endif()
endmacro()

# Kernels (.cu, which know nothing of PyTorch) and the files that register them with PyTorch, among
# the `objects` of which `library` is made.
function(tabes_add_cuda objects library)
  if(NOT EXISTS "${TORCH_INSTALL_PREFIX}/lib/libtorch_cuda.so")
    message(FATAL_ERROR
      "TABES_CUDA=ON needs a CUDA build of PyTorch; the one in ${TORCH_INSTALL_PREFIX} is for the CPU "
      "only. Install one (pip install torch --index-url https://download.pytorch.org/whl/cu130) or "
      "build with -DTABES_CUDA=OFF.")
  endif()
  find_package(CUDAToolkit REQUIRED)
  set(sources cpp/src/ops/cuda)
  target_sources(${objects} PRIVATE
    ${sources}/aqa_bf16.cu
    ${sources}/aqa_fp16.cu
    ${sources}/aqa_fp32.cu
    ${sources}/device_info.cu
    ${sources}/rows.cu
    ${sources}/aqa_cuda.cpp
    ${sources}/aqa_stock.cpp
    ${sources}/graph.cpp
    ${sources}/host.cpp
    ${sources}/rows_cuda.cpp
    ${sources}/stream.cpp)
  # Headers only: the runtime is linked in statically, so that no version of libcudart has to match.
  target_include_directories(${objects} SYSTEM PRIVATE ${CUDAToolkit_INCLUDE_DIRS})
  set_target_properties(${objects} ${library} PROPERTIES
    CUDA_RUNTIME_LIBRARY Static CUDA_VISIBILITY_PRESET hidden)
  # By path, so that the exported package does not name targets that only this build has. A C++ host
  # has nothing else that would load PyTorch's CUDA backend.
  target_link_libraries(${objects} PUBLIC
    "$<BUILD_INTERFACE:-Wl,--push-state,--no-as-needed,${TORCH_INSTALL_PREFIX}/lib/libtorch_cuda.so,${TORCH_INSTALL_PREFIX}/lib/libc10_cuda.so,--pop-state>")
  # What PyTorch's CUDA libraries need in turn (cuBLAS, NCCL, ...) lies wherever pip put it: the loader
  # finds it, a program that links tabes need not.
  target_link_options(${library} INTERFACE "LINKER:--allow-shlib-undefined")
endfunction()
