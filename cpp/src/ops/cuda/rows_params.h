// Arguments of the kernels that treat rows one by one, and their launches on a cudaStream_t, which
// return the first cudaError_t that is not success. The operators they serve are described in
// ops/ops.h. Rows are contiguous unless a stride is named.
#pragma once

#include <cstdint>

#include "ops/cuda/aqa_params.h"
#include "ops/cuda/partials.h"

namespace tabes::gpu {

struct StatisticsParams {
  const void* logits;  // [rows, vocab]
  int64_t rows, vocab;
  // Blocks a row: their parts, [rows, splits], merge in order. Unused for one.
  int splits;
  LogitPartial* parts;
  float *lse, *entropy, *max_prob, *margin;
  int64_t* argmax;
};

struct EntropyParams {
  void* logits;  // [rows, vocab], overwritten by the derivative
  int64_t rows, vocab;
  const int64_t* argmax;
  const float *max_prob, *entropy, *weight;
  float* top;  // [rows] room for the largest logits, which the derivative overwrites
};

struct NormParams {
  const void *x, *grad;  // x [rows, width] `stride` apart; grad for the adjoint only
  int64_t stride, rows;
  int width;
  const float* weight;
  void* out;
  float eps;
};

struct RopeParams {
  void* x;
  int64_t stride, rows;
  int heads, half;
  const float *cos, *sin;  // [table, half]
  int64_t table;
  const int64_t* positions;
  bool inverse;
};

struct GatedParams {
  const void *x, *grad;  // x [rows, 2 width]; grad [rows, width] for the adjoint only
  void* out;
  int64_t rows, width;
  bool gelu;
};

struct SampleParams {
  const void* logits;  // [rows, vocab]
  const double* uniforms;
  int64_t* tokens;
  int64_t rows, vocab;
  float inverse_temperature;
  int64_t top_k;  // 0: all
  double top_p;
};

struct UniformParams {
  uint64_t seed;
  uint32_t stream;                               // tabes::Stream
  const int64_t *sequences, *positions, *steps;  // [count]
  int64_t count;
  double* out;
};

int launch_statistics(const StatisticsParams& p, Number number, void* stream);
int launch_entropy_adjoint(const EntropyParams& p, Number number, void* stream);
int launch_rms_norm(const NormParams& p, Number number, void* stream);
int launch_rms_norm_backward(const NormParams& p, Number number, void* stream);
int launch_rope(const RopeParams& p, Number number, void* stream);
int launch_gated(const GatedParams& p, Number number, void* stream);
int launch_gated_backward(const GatedParams& p, Number number, void* stream);
int launch_sample(const SampleParams& p, Number number, void* stream);
int launch_uniforms(const UniformParams& p, void* stream);

}  // namespace tabes::gpu
