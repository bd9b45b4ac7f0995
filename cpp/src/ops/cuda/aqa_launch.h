// Kernels of the adjoint for one type of number, and their launches. Included by one .cu a type.
#pragma once

#include <cuda_runtime.h>

#include <type_traits>

#include "ops/cuda/aqa_key_pass.h"
#include "ops/cuda/aqa_query_pass.h"
#include "ops/cuda/aqa_reduce.h"
#include "ops/cuda/aqa_simt.h"

namespace tabes::gpu {

template <typename T>
constexpr Number kNumber = std::is_same_v<T, float> ? Number::fp32
                           : IsBFloat16<T>::value   ? Number::bf16
                                                    : Number::fp16;

template <typename T, int D, bool kGradient>
__global__ void __launch_bounds__(aqa_query_shape(kNumber<T>, D).threads)
    aqa_query_kernel(const __grid_constant__ AqaParams p) {
  extern __shared__ __align__(128) char shared[];
  if constexpr (std::is_same_v<T, float>) {
    aqa_query_pass_simt<D, kGradient>(p, shared);
  } else {
    aqa_query_pass<T, D, kGradient>(p, shared);
  }
}

template <typename T, int D>
__global__ void __launch_bounds__(aqa_key_shape(kNumber<T>, D).threads)
    aqa_key_kernel(const __grid_constant__ AqaParams p) {
  extern __shared__ __align__(128) char shared[];
  if constexpr (std::is_same_v<T, float>) {
    aqa_key_pass_simt<D>(p, shared);
  } else {
    aqa_key_pass<T, D>(p, shared);
  }
}

template <typename T>
__global__ void __launch_bounds__(kReduceThreads)
    aqa_add_parts_kernel(T* out, const float* parts, int splits, int64_t count) {
  add_parts(out, parts, splits, count);
}

template <typename T>
__global__ void __launch_bounds__(kReduceThreads)
    aqa_delta_kernel(const __grid_constant__ AqaParams p, int head_dim) {
  find_delta<T>(p, head_dim);
}

template <typename T>
__global__ void __launch_bounds__(kReduceThreads)
    aqa_merge_rows_kernel(const __grid_constant__ AqaParams p) {
  merge_rows(p);
}

// Launches in order on one stream; remembers the first failure and then does nothing more.
class Launcher {
 public:
  explicit Launcher(void* stream) : stream_(static_cast<cudaStream_t>(stream)) {}

  template <typename... Parameters, typename... Arguments>
  void operator()(void (*kernel)(Parameters...), dim3 grid, const AqaShape& shape,
                  const Arguments&... arguments) {
    if (status_ != cudaSuccess || grid.x == 0 || grid.y == 0) return;
    // More than 48 KiB must be asked for.
    if (shape.shared_bytes > 48 << 10) {
      status_ = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                     shape.shared_bytes);
      if (status_ != cudaSuccess) return;
    }
    kernel<<<grid, shape.threads, shape.shared_bytes, stream_>>>(arguments...);
    status_ = cudaGetLastError();
  }
  template <typename... Parameters, typename... Arguments>
  void each(void (*kernel)(Parameters...), int64_t count, int per_block,
            const Arguments&... arguments) {
    (*this)(kernel, dim3(static_cast<unsigned>((count + per_block - 1) / per_block)),
            {0, 0, kReduceThreads, 0}, arguments...);
  }
  cudaError_t status() const { return status_; }

 private:
  cudaStream_t stream_;
  cudaError_t status_ = cudaSuccess;
};

template <typename T, int D>
int launch_aqa_head(const AqaParams& p, const AqaGrid& grid, void* stream) {
  constexpr AqaShape kQuery = aqa_query_shape(kNumber<T>, D), kKey = aqa_key_shape(kNumber<T>, D);
  const auto blocks = [](int64_t tiles, int heads, int splits) {
    return dim3(static_cast<unsigned>(tiles), static_cast<unsigned>(heads),
                static_cast<unsigned>(splits));
  };
  const int64_t rows = p.total_q * p.heads;
  Launcher launch(stream);
  if (!p.out) {
    launch(&aqa_query_kernel<T, D, false>, blocks(grid.query_tiles, p.heads, p.row_splits), kQuery,
           p);
    if (p.row_splits > 1) {
      launch.each(&aqa_merge_rows_kernel<T>, rows, kReduceThreads, p);
    }
  } else if (p.queries) {
    launch.each(&aqa_delta_kernel<T>, rows, kReduceThreads / kWarp, p, D);
  }
  launch(&aqa_query_kernel<T, D, true>, blocks(grid.dq_tiles, p.heads, p.dq_splits), kQuery, p);
  launch(&aqa_key_kernel<T, D>, blocks(grid.key_tiles, p.groups, p.key_splits), kKey, p);
  const auto add = [&](void* out, const float* parts, int splits, int64_t count) {
    if (splits > 1) {
      launch.each(&aqa_add_parts_kernel<T>, count, kReduceThreads, static_cast<T*>(out), parts,
                  splits, count);
    }
  };
  add(p.dq, p.dq_parts, p.dq_splits, p.total_dq * p.heads * D);
  add(p.dk, p.dk_parts, p.key_splits, p.total_keys * p.groups * D);
  add(p.dv, p.dv_parts, p.key_splits, p.total_keys * p.groups * D);
  return launch.status();
}

template <typename T>
int launch_aqa(const AqaParams& p, int head_dim, const AqaGrid& grid, void* stream) {
  switch (head_dim) {
    case 32:
      return launch_aqa_head<T, 32>(p, grid, stream);
    case 64:
      return launch_aqa_head<T, 64>(p, grid, stream);
    case 96:
      return launch_aqa_head<T, 96>(p, grid, stream);
    case 128:
      return launch_aqa_head<T, 128>(p, grid, stream);
    case 256:
      return launch_aqa_head<T, 256>(p, grid, stream);
    default:
      return cudaErrorInvalidValue;
  }
}

int launch_aqa_bf16(const AqaParams& p, int head_dim, const AqaGrid& grid, void* stream);
int launch_aqa_fp16(const AqaParams& p, int head_dim, const AqaGrid& grid, void* stream);
int launch_aqa_fp32(const AqaParams& p, int head_dim, const AqaGrid& grid, void* stream);

}  // namespace tabes::gpu
