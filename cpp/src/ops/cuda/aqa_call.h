// The adjoint of ActiveQueryAttention on CUDA, by its several routes. The arguments are those of
// the operator (ops/ops.h), checked.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <tuple>

namespace tabes::ops {

struct AqaCall {
  const at::Tensor &grad, &q, &k, &v, &keys;
  at::IntArrayRef cu_keys, cu_q, cu_k;
  double scale;
  const std::optional<at::Tensor>&bias, &queries;
  at::IntArrayRef cu_queries;
  const std::optional<at::Tensor>&out, &lse;
};
using AqaResult = std::tuple<at::Tensor, at::Tensor, at::Tensor>;

AqaResult own_aqa_adjoint(const AqaCall& call);
// All sequences at once through FlashAttention-2's ragged backward.
AqaResult flash_aqa_adjoint(const AqaCall& call);
// Sequences of equal lengths through the memory-efficient backward.
AqaResult efficient_aqa_adjoint(const AqaCall& call);

}  // namespace tabes::ops
