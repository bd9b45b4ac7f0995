// The row-sparse adjoint. An edge into an inactive row enters as a key or a value; to go on to
// another row it would have to leave through that row's own attention as a query, which
// ActiveQueryAttention stops. So the whole sweep touches active rows only, and of attention only
// dq at active queries and dk, dv at active keys are ever needed. In the last layer nothing but
// keys and values matters outside the probes; in the first nothing outside the candidates.
#include <ATen/TensorOperators.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/gelu.h>
#include <ATen/ops/gelu_backward.h>
#include <ATen/ops/native_layer_norm.h>
#include <ATen/ops/native_layer_norm_backward.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <cmath>

#include "batch/forbidden.h"
#include "batch/pieces.h"
#include "model/precision.h"
#include "model/transformer.h"
#include "ops/call.h"
#include "ops/ops.h"
#include "plain_dispatch.h"
#include "tabes/error.h"

namespace tabes {
at::Tensor NormLayer::adjoint(const at::Tensor& grad, const at::Tensor& x) const {
  if (kind == Norm::rms) return ops::rms_norm_backward(grad, x, weight, eps);
  const auto statistics = at::native_layer_norm(x, {x.size(1)}, weight, bias, eps);
  return std::get<0>(at::native_layer_norm_backward(grad, x, {x.size(1)}, std::get<1>(statistics),
                                                    std::get<2>(statistics), weight, bias,
                                                    {true, false, false}));
}

at::Tensor Transformer::activation_adjoint(const at::Tensor& grad, const at::Tensor& up) const {
  switch (config_.mlp) {
    case Mlp::swiglu:
      return ops::gated_backward(grad, up, "silu");
    case Mlp::geglu:
      return ops::gated_backward(grad, up, "gelu");
    case Mlp::gelu:
      return at::gelu_backward(grad, up, "none");
    case Mlp::gelu_tanh:
      return at::gelu_backward(grad, up, "tanh");
  }
  TORCH_INTERNAL_ASSERT(false, "unknown MLP kind");
}

void Transformer::qk_norm_adjoint(const Layer& layer, const at::Tensor& grad,
                                  const at::Tensor& qk) const {
  const auto back = [&](int64_t from, int64_t width, const NormLayer& norm) {
    at::Tensor part = grad.narrow(1, from, width);
    const at::Tensor before = qk.narrow(1, from, width).reshape({-1, config_.head_dim});
    part.copy_(norm.adjoint(part.reshape({-1, config_.head_dim}), before).view(part.sizes()));
  };
  back(0, q_width(), layer.q_norm);
  back(q_width(), kv_width(), layer.k_norm);
}

at::Tensor Transformer::adjoint(size_t index, const LayerTape& tape, at::Tensor grad,
                                const RowSet& out, const RowSet& in, const GradientRequest& request,
                                const at::Tensor& positions) const {
  const TransformerConfig& c = config_;
  const Layer& layer = layers_[index];
  const RowSet& active = request.active;
  const bool pre = is_pre(), whole_out = &out == &active, whole_in = &in == &active;
  // The residual sums pass `grad` on unchanged beside what comes through the sublayers.
  if (pre) {
    const at::Tensor up = activation_adjoint(layer.down.adjoint(grad), tape.up);
    grad = layer.mlp_norm.adjoint(layer.up.adjoint(up), tape.mlp_norm_in).add_(grad);
  } else {
    grad = layer.mlp_norm.adjoint(grad, tape.mlp_norm_in);
    const at::Tensor up = activation_adjoint(layer.down.adjoint(grad), tape.up);
    grad = layer.up.adjoint_plus(up, grad);
    grad = layer.attn_norm.adjoint(grad, tape.attn_norm_in);
  }

  // Where the layer is both the last and the first, its queries (probes) are no inputs wanted.
  std::optional<at::Tensor> queries;
  std::vector<int64_t> cu_queries;
  at::Tensor in_places;
  if (!whole_in) {
    in_places = places(active.rows, in.rows);
    if (whole_out) {
      queries = in_places;
      cu_queries = in.cu_rows;
    }
  }
  const at::Tensor out_places = whole_out ? at::Tensor() : places(active.rows, out.rows);
  const auto at_active = [&](const at::Tensor& t) {
    if (whole_out) return t;
    // Added, since two probes can be predicted by the same row.
    return at::zeros({active.count(), t.size(1)}, t.options()).index_add_(0, out_places, t);
  };
  const auto at_in = [&](const at::Tensor& t) {
    return whole_in ? t : t.index_select(0, in_places);
  };

  const auto kept = [](const at::Tensor& t) {
    return t.defined() ? std::optional<at::Tensor>(t) : std::nullopt;
  };
  const ops::AttentionGradient d = ops::active_query_attention_backward(
      layer.attn_out.adjoint(grad), heads(tape.q, c.num_heads),
      heads(tape.kv.narrow(1, 0, kv_width()), c.num_kv_heads),
      heads(tape.kv.narrow(1, kv_width(), kv_width()), c.num_kv_heads), in.rows, in.cu_rows,
      out.cu_rows, request.batch.cu_seqlens, 1.0 / std::sqrt(static_cast<double>(c.head_dim)),
      std::nullopt, queries, cu_queries, kept(tape.mixed), kept(tape.lse));
  at::Tensor qkv = at::empty({in.count(), q_width() + 2 * kv_width()}, grad.options());
  at::Tensor dq = d.dq.flatten(1);
  if (!queries) dq = at_in(at_active(dq));
  qkv.narrow(1, 0, q_width()).copy_(dq);
  qkv.narrow(1, q_width(), kv_width()).copy_(d.dk.flatten(1));
  qkv.narrow(1, q_width() + kv_width(), kv_width()).copy_(d.dv.flatten(1));
  if (in.valid.defined()) {
    qkv.narrow(1, q_width(), 2 * kv_width()).masked_fill_(in.valid.bitwise_not().unsqueeze(1), 0);
  }
  if (cos_.defined()) {
    ops::rope_(qkv, c.num_heads + c.num_kv_heads, cos_, sin_, positions.index_select(0, in.rows),
               /*inverse=*/true);
  }
  if (c.qk_norm) qk_norm_adjoint(layer, qkv, at_in(tape.qk));
  grad = at_in(at_active(grad));
  if (!pre) return layer.qkv.adjoint_plus(qkv, grad);
  return layer.attn_norm.adjoint(layer.qkv.adjoint(qkv), at_in(tape.attn_norm_in)).add_(grad);
}

at::Tensor Transformer::head_adjoint(const at::Tensor& x, const GradientRequest& request,
                                     at::Tensor& entropy) const {
  const bool tanh = config_.mlp == Mlp::gelu_tanh;
  at::Tensor features = config_.final_norm ? final_norm_(x) : x;
  at::Tensor dense, activated;
  if (config_.head_transform) {
    dense = head_dense_(features);
    activated = at::gelu(dense, tanh ? "tanh" : "none");
    features = head_norm_(activated);
  }
  const int64_t n = x.size(0);
  const auto real = x.options().dtype(ops::accumulate_type(x.scalar_type()));
  const at::Tensor weight =
      adjoint_scale(x.scalar_type()) *
      (request.weight.defined() ? request.weight.to(real) : at::ones({n}, real));
  entropy = at::empty({n}, real);
  at::Tensor grad = at::empty_like(features);
  const int64_t piece = logits_at_once(info_.vocab_size, x.element_size());
  for (int64_t from = 0; from < n; from += piece) {
    if (request.poll) request.poll();
    const int64_t count = std::min(piece, n - from);
    const auto part = [&](const at::Tensor& t) { return t.narrow(0, from, count); };
    at::Tensor logits = head_(part(features)).contiguous();
    forbid(logits, request.forbidden);
    const ops::RowStatistics s = ops::row_statistics(logits);
    part(entropy).copy_(s.entropy);
    ops::entropy_adjoint_(logits, s.argmax, s.max_prob, s.entropy, part(weight));
    part(grad).copy_(head_.adjoint(logits));
  }
  if (config_.head_transform) {
    grad = at::gelu_backward(head_norm_.adjoint(grad, activated), dense, tanh ? "tanh" : "none");
    grad = head_dense_.adjoint(grad);
  }
  return config_.final_norm ? final_norm_.adjoint(grad, x) : grad;
}

void count_rows(const GradientRequest& request, EntropyGradient& result) {
  result.cost.backward_rows = request.active.count();
  result.cost.forward_rows = request.frozen ? result.cost.backward_rows : request.batch.rows();
  result.cost.head_rows = request.probes.count();
}

namespace {

// Puts back what a frozen pass overwrites, however it ends, so that the context can serve again.
class Borrowed {
 public:
  Borrowed(FrozenContext* context, const at::Tensor& rows) : context_(context), rows_(rows) {
    if (!context_) return;
    for (const at::Tensor& kv : context_->kv) before_.push_back(kv.index_select(0, rows));
  }
  ~Borrowed() {
    if (!context_) return;
    try {
      give_back();
    } catch (...) {
      // A recording, which computes nothing, may fail at this: whoever records sees to it.
      if (!context_->fixed) context_->spoil();
    }
  }
  Borrowed(const Borrowed&) = delete;
  Borrowed& operator=(const Borrowed&) = delete;

  void give_back() {
    for (size_t i = 0; i < before_.size(); ++i) {
      context_->kv[i].index_copy_(0, rows_, before_[i]);
    }
    context_ = nullptr;
    before_.clear();
  }

 private:
  FrozenContext* context_;
  const at::Tensor rows_;
  std::vector<at::Tensor> before_;
};

}  // namespace

EntropyGradient Transformer::entropy_gradient(const GradientRequest& request) const {
  const PlainDispatch plain;
  const PackedBatch& batch = request.batch;
  check_lengths(batch);
  const at::Tensor &active = request.active.rows, &candidates = request.candidates.rows;
  const RowSet outputs = outputs_for(batch, request.probes);
  FrozenContext* frozen = request.frozen ? &own(*request.frozen, batch) : nullptr;
  if (frozen) {
    check_memory(active.numel(), 0, active.numel());
  } else {
    check_memory(batch.rows(), batch.rows(), active.numel());
  }
  Borrowed borrowed(frozen, active);

  // In the exact forward pass all rows are computed and the active ones remembered.
  std::vector<LayerTape> tape;
  const at::Tensor positions = positions_of(batch.cu_seqlens, info_.device);
  Pass pass{positions, batch.cu_seqlens, batch.cu_seqlens, outputs};
  if (request.active.count() < batch.rows()) pass.taped = active;
  Pass chosen = frozen ? frozen_pass(batch, request.active, outputs, *frozen, positions) : pass;
  chosen.tape = &tape;

  at::Tensor x =
      embed(frozen ? batch.tokens.index_select(0, active) : batch.tokens, chosen.positions);
  const at::Tensor changed = frozen ? places(active, candidates) : candidates;
  x.index_add_(0, changed, request.offset.to(x.scalar_type()));
  at::Tensor embedded;
  if (config_.embedding_norm) {
    embedded = x.index_select(0, changed);
    x = embed_norm_(x);
  }
  x = trunk(x, chosen, request.poll);

  EntropyGradient result;
  at::Tensor grad = head_adjoint(x, request, result.entropy);
  for (size_t i = layers_.size(); i-- > 0;) {
    if (request.poll) request.poll();
    const bool last = i + 1 == layers_.size();
    grad = adjoint(i, tape[i], grad, last ? outputs : request.active,
                   i == 0 ? request.candidates : request.active, request, positions);
    tape[i] = {};
  }
  borrowed.give_back();
  if (config_.embedding_norm) grad = embed_norm_.adjoint(grad, embedded);
  result.gradient = grad.to(ops::accumulate_type(info_.dtype)) / adjoint_scale(info_.dtype);
  count_rows(request, result);
  return result;
}

}  // namespace tabes
