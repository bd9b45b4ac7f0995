// The operators of tabes. Each is registered with the PyTorch dispatcher under torch.ops.tabes, one
// file an operator, so that backends add themselves and Python can test them; the functions here
// are the typed way to call them from C++. None takes part in autograd unless it says so.
//
// Letters: R rows, D hidden size, V vocabulary, H heads, n rows asked for.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "random/philox.h"

namespace tabes::ops {

// x [R, D] with any row stride, weight [D] float32 (float64 for a float64 x) -> [R, D]:
// x / sqrt(mean(x^2) + eps) * weight, computed in the weight's type.
at::Tensor rms_norm(const at::Tensor& x, const at::Tensor& weight, double eps);

// dx of rms_norm for the gradient [R, D] of its result.
at::Tensor rms_norm_backward(const at::Tensor& grad, const at::Tensor& x, const at::Tensor& weight,
                             double eps);

// Rotates, in place, the first `heads` heads of each row of x [R, >= heads * 2 * half] by the
// half-split rotary embedding (Su et al., arXiv 2104.09864). cos, sin [P, half] float32 (float64
// for float64 x), positions [R] int64 in [0, P). `inverse` rotates back, which is also the adjoint.
void rope_(const at::Tensor& x, int64_t heads, const at::Tensor& cos, const at::Tensor& sin,
           const at::Tensor& positions, bool inverse = false);

// x [R, 2F] -> [R, F]: act(first half) * second half, act being SiLU ("silu") or the exact GELU
// ("gelu"). SwiGLU and GeGLU of Shazeer, arXiv 2002.05202.
at::Tensor gated(const at::Tensor& x, const std::string& act);

// dx [R, 2F] of gated for the gradient [R, F] of its result.
at::Tensor gated_backward(const at::Tensor& grad, const at::Tensor& x, const std::string& act);

// One pass over logits [n, V]; -inf entries are tokens of probability zero. Each result is [n]:
// float32 (float64 for float64 logits) and int64 for argmax. Entropy is in nats; margin is the
// largest minus the second probability; ties of argmax go to the lowest index. A row with a NaN or
// +inf is NaN throughout; a row that is all -inf has entropy NaN.
struct RowStatistics {
  at::Tensor lse, entropy, max_prob, margin, argmax;
};
RowStatistics row_statistics(const at::Tensor& logits);

// Turns logits [n, V] in place into the derivative of sum_i weight_i * entropy_i by each of them:
// -weight p (log p + H). argmax, max_prob and entropy are row_statistics of the logits; weight is
// [n] of their type. Tokens of probability zero get derivative zero, rows of weight zero
// throughout.
void entropy_adjoint_(const at::Tensor& logits, const at::Tensor& argmax,
                      const at::Tensor& max_prob, const at::Tensor& entropy,
                      const at::Tensor& weight);

// Draws a token for each row of logits [n, V] from softmax(logits / temperature), cut to the
// `top_k` likeliest tokens (0: all), then to the smallest set whose probability reaches `top_p`.
// `uniforms` [n] float64 in (0, 1) decide. -> [n] int64.
at::Tensor sample_rows(const at::Tensor& logits, const at::Tensor& uniforms, double temperature,
                       int64_t top_k, double top_p);

// counter_uniform (random/philox.h) of each entry: sequences, positions and steps are contiguous
// [n] int64. -> [n] float64 in (0, 1), the same bits on every device.
at::Tensor counter_uniforms(const at::Tensor& sequences, const at::Tensor& positions,
                            const at::Tensor& steps, uint64_t seed, Stream stream);

// Softmax attention of packed sequences: queries q [n, H, d], keys and values k, v [R, Hkv, d],
// H a multiple of Hkv; the queries of sequence b are rows cu_q[b]..cu_q[b+1] and see the keys
// cu_k[b]..cu_k[b+1], all of them (no causal mask). -> [n, H * d]. `bias` [n, W], if given, is
// added to the scores: its row for a query holds one number for each key of the sequence, so W is
// at least the longest.
at::Tensor attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                     const std::vector<int64_t>& cu_q, const std::vector<int64_t>& cu_k,
                     double scale, const std::optional<at::Tensor>& bias = std::nullopt);

// The same without a bias, with the log-sum-exp of each query's scores, [n, H] float32, where its
// adjoint can use it: on a GPU. Undefined otherwise.
struct KeptAttention {
  at::Tensor out, lse;
};
KeptAttention attention_kept(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                             const std::vector<int64_t>& cu_q, const std::vector<int64_t>& cu_k,
                             double scale);

// The adjoint of that attention where it counts (ActiveQueryAttention of TABES, arXiv 2602.00250):
// q [m, H, d] and grad [m, H * d] are the active queries and the gradient of their outputs; keys
// (k, v) are all there. `keys` [nk] are the rows whose dk and dv are wanted, those of sequence b
// being cu_keys[b]..cu_keys[b+1]; every other query counts as a constant.
//   dq [m, H, d] over all keys; dk, dv [nk, Hkv, d] from the given queries.
// `queries`, if given, says for which of the m queries dq is wanted (increasing; cu_queries offsets
// them by sequence), and dq has those rows only. `out` [m, H * d] and `lse` [m, H] are what
// attention_kept gave for these queries; the CPU does without, a GPU would compute them anew.
struct AttentionGradient {
  at::Tensor dq, dk, dv;
};
AttentionGradient active_query_attention_backward(
    const at::Tensor& grad, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
    const at::Tensor& keys, at::IntArrayRef cu_keys, at::IntArrayRef cu_q, at::IntArrayRef cu_k,
    double scale, const std::optional<at::Tensor>& bias = std::nullopt,
    const std::optional<at::Tensor>& queries = std::nullopt, at::IntArrayRef cu_queries = {},
    const std::optional<at::Tensor>& out = std::nullopt,
    const std::optional<at::Tensor>& lse = std::nullopt);

}  // namespace tabes::ops
