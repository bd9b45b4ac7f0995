// The adjoint's launches for one type of number. Included by one .cu file a type.
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
struct AqaQueries {
  static constexpr AqaShape kShape = aqa_query_shape(kNumber<T>, D);
  static constexpr int kThreads = kShape.threads, kShared = kShape.shared_bytes;
  static TABES_DEVICE void run(const AqaParams& p, char* shared) {
    if constexpr (std::is_same_v<T, float>) {
      aqa_query_pass_simt<D, kGradient>(p, shared);
    } else {
      aqa_query_pass<T, D, kGradient>(p, shared);
    }
  }
};

template <typename T, int D>
struct AqaKeys {
  static constexpr AqaShape kShape = aqa_key_shape(kNumber<T>, D);
  static constexpr int kThreads = kShape.threads, kShared = kShape.shared_bytes;
  static TABES_DEVICE void run(const AqaParams& p, char* shared) {
    if constexpr (std::is_same_v<T, float>) {
      aqa_key_pass_simt<D>(p, shared);
    } else {
      aqa_key_pass<T, D>(p, shared);
    }
  }
};

struct AqaReduction {
  static constexpr int kThreads = kReduceThreads, kShared = 0;
};
template <typename T>
struct AqaSum : AqaReduction {
  static TABES_DEVICE void run(const PartsParams& p, char*) { add_parts<T>(p); }
};
template <typename T>
struct AqaMerge : AqaReduction {
  static TABES_DEVICE void run(const AqaParams& p, char*) { merge_rows(p); }
};
template <typename T, int D>
struct AqaDelta : AqaReduction {
  static TABES_DEVICE void run(const AqaParams& p, char*) { find_delta<T>(p, D); }
};

template <typename T, int D>
int launch_aqa_head(const AqaParams& p, const AqaGrid& grid, void* stream) {
  const int64_t rows = p.total_q * p.heads;
  Launcher launch(stream);
  if (!p.out) {
    launch.run<AqaQueries<T, D, false>>({grid.query_tiles, p.heads, p.row_splits}, p);
    if (p.row_splits > 1) launch.run<AqaMerge<T>>({blocks_for(rows, kReduceThreads)}, p);
  } else if (p.queries) {
    launch.run<AqaDelta<T, D>>({blocks_for(rows, kReduceThreads / kWarp)}, p);
  }
  launch.run<AqaQueries<T, D, true>>({grid.dq_tiles, p.heads, p.dq_splits}, p);
  launch.run<AqaKeys<T, D>>({grid.key_tiles, p.groups, p.key_splits}, p);
  const auto add = [&](void* out, const float* parts, int splits, int64_t count) {
    if (splits == 1) return;
    launch.run<AqaSum<T>>({blocks_for(count, kReduceThreads)},
                          PartsParams{out, parts, splits, count});
  };
  add(p.dq, p.dq_parts, p.dq_splits, p.total_dq * p.heads * D);
  add(p.dk, p.dk_parts, p.key_splits, p.total_keys * p.groups * D);
  add(p.dv, p.dv_parts, p.key_splits, p.total_keys * p.groups * D);
  return launch.status();
}

constexpr int kInvalidValue = 1;  // cudaErrorInvalidValue

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
      return kInvalidValue;
  }
}

int launch_aqa_bf16(const AqaParams& p, int head_dim, const AqaGrid& grid, void* stream);
int launch_aqa_fp16(const AqaParams& p, int head_dim, const AqaGrid& grid, void* stream);
int launch_aqa_fp32(const AqaParams& p, int head_dim, const AqaGrid& grid, void* stream);

}  // namespace tabes::gpu
