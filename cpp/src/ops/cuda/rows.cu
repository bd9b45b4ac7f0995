// Launches of the kernels in logits.h, blocks.h and sample.h.
#include "ops/cuda/blocks.h"
#include "ops/cuda/launch.h"
#include "ops/cuda/logits.h"
#include "ops/cuda/sample.h"

namespace tabes::gpu {
namespace {

constexpr int kMergeThreads = 128;
// Room for a value of each warp.
constexpr int kScratch = 32 * sizeof(LogitPartial);

template <typename T>
__global__ void __launch_bounds__(kLogitThreads)
    statistics_kernel(const __grid_constant__ StatisticsParams p) {
  __shared__ __align__(16) char shared[kScratch];
  logit_statistics<T>(p, shared);
}
__global__ void __launch_bounds__(kMergeThreads)
    merge_statistics_kernel(const __grid_constant__ StatisticsParams p) {
  merge_statistics(p);
}
template <typename T>
__global__ void __launch_bounds__(kMergeThreads)
    entropy_tops_kernel(const __grid_constant__ EntropyParams p) {
  entropy_tops<T>(p);
}
template <typename T>
__global__ void __launch_bounds__(kEntropyThreads)
    entropy_kernel(const __grid_constant__ EntropyParams p) {
  entropy_derivative<T>(p);
}
template <typename T, bool kBackward>
__global__ void __launch_bounds__(kBlockThreads)
    rms_norm_kernel(const __grid_constant__ NormParams p) {
  __shared__ __align__(16) char shared[kScratch];
  rms_norm_rows<T, kBackward>(p, shared);
}
template <typename T>
__global__ void __launch_bounds__(kBlockThreads) rope_kernel(const __grid_constant__ RopeParams p) {
  rotate<T>(p);
}
template <typename T, bool kBackward>
__global__ void __launch_bounds__(kBlockThreads)
    gated_kernel(const __grid_constant__ GatedParams p) {
  gate<T, kBackward>(p);
}
template <typename T>
__global__ void __launch_bounds__(kSampleThreads)
    sample_kernel(const __grid_constant__ SampleParams p) {
  __shared__ __align__(16) char shared[sizeof(SampleShared)];
  sample_row<T>(p, shared);
}
__global__ void __launch_bounds__(kMergeThreads)
    uniforms_kernel(const __grid_constant__ UniformParams p) {
  fill_uniforms(p);
}

// Calls body with a value of the C++ type of `number`.
template <typename Body>
int by_type(Number number, void* stream, const Body& body) {
  Launcher launch(stream);
  switch (number) {
    case Number::bf16:
      body(launch, BFloat16{});
      break;
    case Number::fp16:
      body(launch, Half{});
      break;
    case Number::fp32:
      body(launch, 0.0f);
      break;
  }
  return launch.status();
}

template <bool kBackward>
int launch_norm(const NormParams& p, Number number, void* stream) {
  return by_type(number, stream, [&](Launcher& launch, auto type) {
    const unsigned grid = blocks(p.rows, kBlockThreads / norm_lanes(p.width));
    launch(&rms_norm_kernel<decltype(type), kBackward>, grid, kBlockThreads, 0, p);
  });
}

template <bool kBackward>
int launch_gate(const GatedParams& p, Number number, void* stream) {
  return by_type(number, stream, [&](Launcher& launch, auto type) {
    launch(&gated_kernel<decltype(type), kBackward>, blocks(p.rows * p.width, kBlockThreads),
           kBlockThreads, 0, p);
  });
}

}  // namespace

int launch_statistics(const StatisticsParams& p, Number number, void* stream) {
  return by_type(number, stream, [&](Launcher& launch, auto type) {
    const dim3 grid(static_cast<unsigned>(p.rows), static_cast<unsigned>(p.splits));
    launch(&statistics_kernel<decltype(type)>, grid, kLogitThreads, 0, p);
    if (p.splits > 1) {
      launch(&merge_statistics_kernel, blocks(p.rows, kMergeThreads), kMergeThreads, 0, p);
    }
  });
}

int launch_entropy_adjoint(const EntropyParams& p, Number number, void* stream) {
  return by_type(number, stream, [&](Launcher& launch, auto type) {
    using T = decltype(type);
    launch(&entropy_tops_kernel<T>, blocks(p.rows, kMergeThreads), kMergeThreads, 0, p);
    // Rows are the grid's second dimension, which ends at 65535.
    constexpr int64_t kMost = 65535;
    for (int64_t from = 0; from < p.rows; from += kMost) {
      EntropyParams piece = p;
      piece.logits = static_cast<T*>(p.logits) + from * p.vocab;
      piece.rows = p.rows - from < kMost ? p.rows - from : kMost;
      piece.max_prob += from;
      piece.entropy += from;
      piece.weight += from;
      piece.top += from;
      const dim3 grid(blocks(p.vocab, kEntropyThreads * kEntropyPerThread),
                      static_cast<unsigned>(piece.rows));
      launch(&entropy_kernel<T>, grid, kEntropyThreads, 0, piece);
    }
  });
}

int launch_rms_norm(const NormParams& p, Number number, void* stream) {
  return launch_norm<false>(p, number, stream);
}
int launch_rms_norm_backward(const NormParams& p, Number number, void* stream) {
  return launch_norm<true>(p, number, stream);
}

int launch_rope(const RopeParams& p, Number number, void* stream) {
  return by_type(number, stream, [&](Launcher& launch, auto type) {
    launch(&rope_kernel<decltype(type)>, blocks(p.rows * p.heads * p.half, kBlockThreads),
           kBlockThreads, 0, p);
  });
}

int launch_gated(const GatedParams& p, Number number, void* stream) {
  return launch_gate<false>(p, number, stream);
}
int launch_gated_backward(const GatedParams& p, Number number, void* stream) {
  return launch_gate<true>(p, number, stream);
}

int launch_sample(const SampleParams& p, Number number, void* stream) {
  return by_type(number, stream, [&](Launcher& launch, auto type) {
    launch(&sample_kernel<decltype(type)>, static_cast<unsigned>(p.rows), kSampleThreads, 0, p);
  });
}

int launch_uniforms(const UniformParams& p, void* stream) {
  Launcher launch(stream);
  launch(&uniforms_kernel, blocks(p.count, kMergeThreads), kMergeThreads, 0, p);
  return launch.status();
}

}  // namespace tabes::gpu
