// Kernels of the adjoint for one type of number, and their launches. Included by one .cu a type.
#pragma once

#include <type_traits>

#include "ops/cuda/aqa_key_pass.h"
#include "ops/cuda/aqa_query_pass.h"
#include "ops/cuda/aqa_reduce.h"
#include "ops/cuda/aqa_simt.h"
#include "ops/cuda/launch.h"

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

template <typename T, int D>
int launch_aqa_head(const AqaParams& p, const AqaGrid& grid, void* stream) {
  constexpr AqaShape kQuery = aqa_query_shape(kNumber<T>, D), kKey = aqa_key_shape(kNumber<T>, D);
  const int64_t rows = p.total_q * p.heads;
  Launcher launch(stream);
  const auto pass = [&](auto kernel, const AqaShape& shape, int64_t tiles, int heads, int splits) {
    launch(kernel,
           dim3(static_cast<unsigned>(tiles), static_cast<unsigned>(heads),
                static_cast<unsigned>(splits)),
           shape.threads, shape.shared_bytes, p);
  };
  if (!p.out) {
    pass(&aqa_query_kernel<T, D, false>, kQuery, grid.query_tiles, p.heads, p.row_splits);
    if (p.row_splits > 1) {
      launch(&aqa_merge_rows_kernel<T>, blocks(rows, kReduceThreads), kReduceThreads, 0, p);
    }
  } else if (p.queries) {
    launch(&aqa_delta_kernel<T>, blocks(rows, kReduceThreads / kWarp), kReduceThreads, 0, p, D);
  }
  pass(&aqa_query_kernel<T, D, true>, kQuery, grid.dq_tiles, p.heads, p.dq_splits);
  pass(&aqa_key_kernel<T, D>, kKey, grid.key_tiles, p.groups, p.key_splits);
  const auto add = [&](void* out, const float* parts, int splits, int64_t count) {
    if (splits == 1) return;
    launch(&aqa_add_parts_kernel<T>, blocks(count, kReduceThreads), kReduceThreads, 0,
           static_cast<T*>(out), parts, splits, count);
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
