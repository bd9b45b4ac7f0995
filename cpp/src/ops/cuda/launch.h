// Launching kernels. A kernel is a struct with `kThreads`, `kShared` (bytes of shared memory) and a
// static run(parameters, shared memory). nvcc makes a __global__ function of it; an ordinary
// compiler runs it on the CPU (simt.h), so that grids and the order of launches are tested too.
#pragma once

#include <cstdint>

#include "ops/cuda/simt.h"

#if defined(__CUDACC__)
#include <cuda_runtime.h>
#endif

namespace tabes::gpu {

struct Blocks {
  int64_t x;
  int64_t y = 1, z = 1;
};

inline int64_t blocks_for(int64_t count, int per_block) {
  return (count + per_block - 1) / per_block;
}

#if defined(__CUDACC__)

template <typename Kernel, typename Params>
__global__ void __launch_bounds__(Kernel::kThreads) entry(const __grid_constant__ Params p) {
  extern __shared__ __align__(128) char shared[];
  Kernel::run(p, shared);
}

#endif

// Launches in order on one stream; remembers the first failure and then does nothing more.
class Launcher {
 public:
#if defined(__CUDACC__)
  explicit Launcher(void* stream) : stream_(static_cast<cudaStream_t>(stream)) {}
#else
  explicit Launcher(void*) {}
#endif

  template <typename Kernel, typename Params>
  void run(Blocks blocks, const Params& p) {
    if (status_ != 0 || blocks.x == 0 || blocks.y == 0) return;
#if defined(__CUDACC__)
    // More than 48 KiB must be asked for.
    if (Kernel::kShared > 48 << 10) {
      status_ = cudaFuncSetAttribute(&entry<Kernel, Params>,
                                     cudaFuncAttributeMaxDynamicSharedMemorySize, Kernel::kShared);
      if (status_ != cudaSuccess) return;
    }
    const dim3 grid(static_cast<unsigned>(blocks.x), static_cast<unsigned>(blocks.y),
                    static_cast<unsigned>(blocks.z));
    entry<Kernel, Params><<<grid, Kernel::kThreads, Kernel::kShared, stream_>>>(p);
    status_ = cudaGetLastError();
#else
    const auto size = [](int64_t n) { return static_cast<int>(n); };
    simt::run({size(blocks.x), size(blocks.y), size(blocks.z)}, Kernel::kThreads, Kernel::kShared,
              [&](char* shared) { Kernel::run(p, shared); });
#endif
  }
  int status() const { return status_; }

 private:
#if defined(__CUDACC__)
  cudaStream_t stream_;
#endif
  int status_ = 0;
};

}  // namespace tabes::gpu
