// What the backends of an operator share: the checks of its arguments, and the tensors it returns
// with nothing in them yet.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/string_view.h>

#include <algorithm>
#include <limits>
#include <optional>
#include <tuple>

#include "ops/cpu/kernels.h"

namespace tabes::ops {

using OptionalTensor = std::optional<at::Tensor>;

// 1 / temperature within the normal numbers of A, so that no product with it is NaN: the highest
// temperatures make all possible tokens alike, the lowest leave the likeliest.
template <typename A>
A inverse_temperature(double temperature) {
  return static_cast<A>(std::clamp<double>(1.0 / temperature, std::numeric_limits<A>::min(),
                                           std::numeric_limits<A>::max()));
}

at::Tensor rms_norm_meta(const at::Tensor& x, const at::Tensor& weight, double eps);
at::Tensor rms_norm_backward_meta(const at::Tensor& grad, const at::Tensor& x,
                                  const at::Tensor& weight, double eps);
void rope_meta(const at::Tensor& x, int64_t heads, const at::Tensor& cos, const at::Tensor& sin,
               const at::Tensor& positions, bool inverse);
cpu::Gate gate_named(c10::string_view act);
at::Tensor gated_meta(const at::Tensor& x, c10::string_view act);
at::Tensor gated_backward_meta(const at::Tensor& grad, const at::Tensor& x, c10::string_view act);
// lse, entropy, max_prob, margin, argmax.
std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor> row_statistics_meta(
    const at::Tensor& logits);
void entropy_adjoint_meta(const at::Tensor& logits, const at::Tensor& argmax,
                          const at::Tensor& max_prob, const at::Tensor& entropy,
                          const at::Tensor& weight);
at::Tensor sample_rows_meta(const at::Tensor& logits, const at::Tensor& uniforms,
                            double temperature, int64_t top_k, double top_p);
at::Tensor counter_uniforms_meta(const at::Tensor& sequences, const at::Tensor& positions,
                                 const at::Tensor& steps, int64_t seed, int64_t stream);

// The forward of ActiveQueryAttention on any device.
at::Tensor active_query_attention_forward(const at::Tensor& q, const at::Tensor& k,
                                          const at::Tensor& v, const at::Tensor& active,
                                          at::IntArrayRef cu_active, at::IntArrayRef cu_seqlens,
                                          double scale, const OptionalTensor& bias);
// The arguments of its adjoint. Row numbers are looked at where the host can read them.
void check_active_query_attention_backward(
    const at::Tensor& grad, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
    const at::Tensor& keys, at::IntArrayRef cu_keys, at::IntArrayRef cu_q, at::IntArrayRef cu_k,
    const OptionalTensor& bias, const OptionalTensor& queries, at::IntArrayRef cu_queries,
    const OptionalTensor& out, const OptionalTensor& lse);

}  // namespace tabes::ops
