// The adjoint through PyTorch's own backward operators: queries, results, log-sum-exps and
// gradients of the active rows beside all keys and values are valid arguments, since each query's
// share of the adjoint needs nothing of the other queries. They compute dk and dv of every key; the
// wanted ones are picked out.
#include <ATen/ops/_flash_attention_backward.h>
#include <ATen/ops/_scaled_dot_product_efficient_attention_backward.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <limits>

#include "ops/cuda/aqa_call.h"
#include "ops/cuda/host.h"

namespace tabes::ops {
namespace {

AqaResult picked(const AqaCall& c, at::Tensor dq, const at::Tensor& dk, const at::Tensor& dv) {
  if (c.queries) dq = dq.index_select(0, *c.queries);
  return {dq, dk.index_select(0, c.keys), dv.index_select(0, c.keys)};
}

}  // namespace

AqaResult flash_aqa_adjoint(const AqaCall& c) {
  int64_t most_q = 0, most_k = 0;
  for (size_t b = 0; b + 1 < c.cu_k.size(); ++b) {
    most_q = std::max(most_q, c.cu_q[b + 1] - c.cu_q[b]);
    most_k = std::max(most_k, c.cu_k[b + 1] - c.cu_k[b]);
  }
  const at::Tensor offsets = offsets_on(c.q.device(), at::kInt, {c.cu_q, c.cu_k});
  // Without dropout the state of the generator is not looked at.
  const at::Tensor state = at::zeros({2}, c.q.options().dtype(at::kUInt64));
  const auto [dq, dk, dv] = at::_flash_attention_backward(
      c.grad.view(c.q.sizes()), c.q, c.k, c.v, c.out->view(c.q.sizes()), c.lse->t().contiguous(),
      offsets[0], offsets[1], most_q, most_k, /*dropout_p=*/0.0, /*is_causal=*/false, state,
      at::empty({0}, state.options()), c.scale);
  return picked(c, dq, dk, dv);
}

AqaResult efficient_aqa_adjoint(const AqaCall& c) {
  const int64_t batch = static_cast<int64_t>(c.cu_k.size()) - 1;
  const int64_t heads = c.q.size(1), groups = c.k.size(1), d = c.q.size(2);
  const int64_t queries = c.cu_q[1], length = c.cu_k[1], repeat = heads / groups;
  // [rows, heads, d] -> [batch, heads, rows of one, d].
  const auto split = [&](const at::Tensor& t, int64_t rows, int64_t h) {
    return t.reshape({batch, rows, h, d}).transpose(1, 2);
  };
  const auto each = [&](const at::Tensor& t) {
    return repeat == 1 ? t : t.repeat_interleave(repeat, 1);
  };
  // This kernel wants the log-sum-exps of a multiple of 32 queries.
  at::Tensor lse = at::full({batch, heads, (queries + 31) / 32 * 32},
                            std::numeric_limits<float>::infinity(), c.lse->options());
  lse.narrow(2, 0, queries).copy_(c.lse->view({batch, queries, heads}).transpose(1, 2));
  const at::Tensor state = at::zeros({}, c.q.options().dtype(at::kLong));
  const auto [dq, dk, dv, unused] = at::_scaled_dot_product_efficient_attention_backward(
      split(c.grad, queries, heads), split(c.q, queries, heads), each(split(c.k, length, groups)),
      each(split(c.v, length, groups)), at::Tensor(), split(*c.out, queries, heads), lse, state,
      state, /*dropout_p=*/0.0, {true, true, true, false}, /*is_causal=*/false, c.scale);
  const auto rows = [&](const at::Tensor& t) {
    return t.transpose(1, 2).reshape({t.size(0) * t.size(2), t.size(1), d});
  };
  // Heads of a group share a key: their gradients add up, in float32.
  const auto grouped = [&](const at::Tensor& t) {
    if (repeat == 1) return rows(t);
    const at::Tensor wide = rows(t).view({batch * length, groups, repeat, d});
    return wide.sum(2, false, at::kFloat).to(t.scalar_type());
  };
  return picked(c, rows(dq), grouped(dk), grouped(dv));
}

}  // namespace tabes::ops
