// Launches of the kernels in logits.h, blocks.h and sample.h.
#include "ops/cuda/blocks.h"
#include "ops/cuda/launch.h"
#include "ops/cuda/logits.h"
#include "ops/cuda/sample.h"

namespace tabes::gpu {
namespace {

constexpr int kSmallThreads = 128;

template <typename T>
struct Statistics {
  static constexpr int kThreads = kLogitThreads;
  static constexpr int kShared = kLogitThreads / kWarp * sizeof(LogitPartial);
  static TABES_DEVICE void run(const StatisticsParams& p, char* s) { logit_statistics<T>(p, s); }
};
struct StatisticsMerge {
  static constexpr int kThreads = kSmallThreads, kShared = 0;
  static TABES_DEVICE void run(const StatisticsParams& p, char*) { merge_statistics(p); }
};
template <typename T>
struct EntropyTops {
  static constexpr int kThreads = kSmallThreads, kShared = 0;
  static TABES_DEVICE void run(const EntropyParams& p, char*) { entropy_tops<T>(p); }
};
template <typename T>
struct EntropyDerivative {
  static constexpr int kThreads = kEntropyThreads, kShared = 0;
  static TABES_DEVICE void run(const EntropyParams& p, char*) { entropy_derivative<T>(p); }
};
template <typename T, bool kBackward>
struct RmsNorm {
  static constexpr int kThreads = kBlockThreads;
  static constexpr int kShared = kBlockThreads / kWarp * sizeof(float);
  static TABES_DEVICE void run(const NormParams& p, char* s) { rms_norm_rows<T, kBackward>(p, s); }
};
template <typename T>
struct Rope {
  static constexpr int kThreads = kBlockThreads, kShared = 0;
  static TABES_DEVICE void run(const RopeParams& p, char*) { rotate<T>(p); }
};
template <typename T, bool kBackward>
struct Gated {
  static constexpr int kThreads = kBlockThreads, kShared = 0;
  static TABES_DEVICE void run(const GatedParams& p, char*) { gate<T, kBackward>(p); }
};
template <typename T>
struct Sample {
  static constexpr int kThreads = kSampleThreads, kShared = sizeof(SampleShared);
  static TABES_DEVICE void run(const SampleParams& p, char* s) { sample_row<T>(p, s); }
};
struct Uniforms {
  static constexpr int kThreads = kSmallThreads, kShared = 0;
  static TABES_DEVICE void run(const UniformParams& p, char*) { fill_uniforms(p); }
};

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
    launch.run<RmsNorm<decltype(type), kBackward>>(
        {blocks_for(p.rows, kBlockThreads / norm_lanes(p.width))}, p);
  });
}

template <bool kBackward>
int launch_gate(const GatedParams& p, Number number, void* stream) {
  return by_type(number, stream, [&](Launcher& launch, auto type) {
    launch.run<Gated<decltype(type), kBackward>>({blocks_for(p.rows * p.width, kBlockThreads)}, p);
  });
}

}  // namespace

int launch_statistics(const StatisticsParams& p, Number number, void* stream) {
  return by_type(number, stream, [&](Launcher& launch, auto type) {
    launch.run<Statistics<decltype(type)>>({p.rows, p.splits}, p);
    if (p.splits > 1) launch.run<StatisticsMerge>({blocks_for(p.rows, kSmallThreads)}, p);
  });
}

int launch_entropy_adjoint(const EntropyParams& p, Number number, void* stream) {
  return by_type(number, stream, [&](Launcher& launch, auto type) {
    using T = decltype(type);
    launch.run<EntropyTops<T>>({blocks_for(p.rows, kSmallThreads)}, p);
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
      launch.run<EntropyDerivative<T>>(
          {blocks_for(p.vocab, kEntropyThreads * kEntropyPerThread), piece.rows}, piece);
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
    launch.run<Rope<decltype(type)>>({blocks_for(p.rows * p.heads * p.half, kBlockThreads)}, p);
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
    launch.run<Sample<decltype(type)>>({p.rows}, p);
  });
}

int launch_uniforms(const UniformParams& p, void* stream) {
  Launcher launch(stream);
  launch.run<Uniforms>({blocks_for(p.count, kSmallThreads)}, p);
  return launch.status();
}

}  // namespace tabes::gpu
