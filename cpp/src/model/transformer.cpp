#include "model/transformer.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/gelu.h>
#include <ATen/ops/layer_norm.h>
#include <ATen/ops/searchsorted.h>
#include <ATen/ops/where.h>

#include <cmath>

#include "available_memory.h"
#include "messages.h"
#include "ops/ops.h"
#include "plain_dispatch.h"

namespace tabes {

at::Tensor NormLayer::operator()(const at::Tensor& x) const {
  if (kind == Norm::rms) return ops::rms_norm(x, weight, eps);
  return at::layer_norm(x, {x.size(1)}, weight, bias, eps);
}

void Transformer::check_lengths(const PackedBatch& batch) const {
  for (int64_t b = 0; b < batch.size(); ++b) {
    const int64_t length = batch.cu_seqlens[b + 1] - batch.cu_seqlens[b];
    if (length >= 1 && length <= config_.max_length) continue;
    refuse("sequence ", b, " has ", length, " tokens; this model takes 1 to ", config_.max_length);
  }
}

FrozenContext& Transformer::own(Context& context, const PackedBatch& batch) const {
  auto* found = dynamic_cast<FrozenContext*>(&context);
  if (!found || found->kv.size() != layers_.size() || found->kv[0].size(0) < batch.rows()) {
    refuse("this context is not of this model and batch, or a pass in it failed: encode() anew");
  }
  return *found;
}

void Transformer::check_memory(int64_t rows, int64_t kept, int64_t taped) const {
  if (!info_.device.is_cpu()) return;
  const int64_t d = config_.hidden_size, up = layers_[0].up.out_features();
  const int64_t qkv = q_width() + 2 * kv_width();
  // In the middle of an MLP; the last layer is computed at the wanted rows alone.
  const int64_t at_once = layers_.size() > 1 ? rows * (3 * d + qkv + up) : 0;
  // Keys and values stay where they were computed, queries beside them.
  const int64_t by_layer = kept * qkv + taped * (2 * d + q_width() + up);
  const auto layers = static_cast<int64_t>(layers_.size()) - 1;
  require_memory((at_once + layers * by_layer) * c10::elementSize(info_.dtype));
}

at::Tensor places(const at::Tensor& all, const at::Tensor& rows) {
  return at::searchsorted(all, rows);
}

at::Tensor positions_of(const std::vector<int64_t>& cu_seqlens, at::Device device) {
  std::vector<int64_t> host(cu_seqlens.back());
  for (size_t b = 0; b + 1 < cu_seqlens.size(); ++b) {
    for (int64_t i = cu_seqlens[b]; i < cu_seqlens[b + 1]; ++i) host[i] = i - cu_seqlens[b];
  }
  return to_tensor(host, device);
}

at::Tensor Transformer::embed(const at::Tensor& tokens, const at::Tensor& positions) const {
  at::Tensor x = tokens_.index_select(0, tokens);
  if (positions_.defined()) x.add_(positions_.index_select(0, positions));
  return x;
}

at::Tensor Transformer::mlp(const Layer& layer, const at::Tensor& x, const Pass& pass,
                            LayerTape* tape, bool last) const {
  const bool tanh = config_.mlp == Mlp::gelu_tanh;
  const bool is_gated = config_.mlp == Mlp::swiglu || config_.mlp == Mlp::geglu;
  if (!is_gated && !tape) return layer.up.gelu(x, tanh);
  const at::Tensor up = layer.up(x);
  if (tape) tape->up = last ? up : pass.at_taped(up);
  if (is_gated) return ops::gated(up, config_.mlp == Mlp::swiglu ? "silu" : "gelu");
  return at::gelu(up, tanh ? "tanh" : "none");
}

// One layer for the pass's rows; the last one's output at the wanted rows only.
at::Tensor Transformer::apply(size_t index, const at::Tensor& x, const Pass& pass) const {
  const TransformerConfig& c = config_;
  const Layer& layer = layers_[index];
  const bool pre = is_pre(), last = index + 1 == layers_.size();
  LayerTape* tape = pass.tape ? &(*pass.tape)[index] : nullptr;
  const at::Tensor qkv = layer.qkv(pre ? layer.attn_norm(x) : x);
  if (tape && pre) tape->attn_norm_in = pass.at_taped(x);
  if (c.qk_norm) {
    if (tape) tape->qk = pass.at_taped(qkv.narrow(1, 0, q_width() + kv_width())).clone();
    const auto normalise = [&](int64_t from, int64_t width, const NormLayer& norm) {
      at::Tensor part = qkv.narrow(1, from, width);
      part.copy_(norm(part.reshape({-1, c.head_dim})).view(part.sizes()));
    };
    normalise(0, q_width(), layer.q_norm);
    normalise(q_width(), kv_width(), layer.k_norm);
  }
  if (cos_.defined()) ops::rope_(qkv, c.num_heads + c.num_kv_heads, cos_, sin_, pass.positions);
  at::Tensor q = qkv.narrow(1, 0, q_width()), residual = x;
  at::Tensor kv = qkv.narrow(1, q_width(), 2 * kv_width());
  if (pass.keep && index < pass.keep->kv.size()) {
    pass.keep->kv[index].copy_(kv);
  } else if (pass.keep) {
    // Left where it is: a copy would cost more time than the queries beside it cost memory.
    pass.keep->kv.push_back(kv);
  }
  if (pass.frozen) {
    at::Tensor& memory = pass.frozen->kv[index];
    if (pass.valid.defined()) {
      kv = at::where(pass.valid.unsqueeze(1), kv, memory.index_select(0, pass.rows));
    }
    memory.index_copy_(0, pass.rows, kv);
    kv = memory.narrow(0, 0, pass.cu_seqlens.back());
  }
  if (last) {
    q = q.index_select(0, pass.wanted.rows);
    residual = x.index_select(0, pass.wanted.rows);
  }
  if (tape) {
    tape->q = last ? q : pass.at_taped(q);
    tape->kv = kv;
  }
  const at::Tensor k = heads(kv.narrow(1, 0, kv_width()), c.num_kv_heads);
  const at::Tensor v = heads(kv.narrow(1, kv_width(), kv_width()), c.num_kv_heads);
  const double scale = 1.0 / std::sqrt(static_cast<double>(c.head_dim));
  const std::vector<int64_t>& cu_q = last ? pass.wanted.cu_rows : pass.cu_rows;
  const auto taped = [&](const at::Tensor& t) { return last ? t : pass.at_taped(t); };
  at::Tensor mixed;
  if (tape) {
    const ops::KeptAttention kept =
        ops::attention_kept(heads(q, c.num_heads), k, v, cu_q, pass.cu_seqlens, scale);
    mixed = kept.out;
    if (kept.lse.defined()) {
      tape->mixed = taped(mixed);
      tape->lse = taped(kept.lse);
    }
  } else {
    mixed = ops::attention(heads(q, c.num_heads), k, v, cu_q, pass.cu_seqlens, scale);
  }
  at::Tensor h = layer.attn_out.plus(mixed, residual);
  if (!pre) {
    if (tape) tape->attn_norm_in = taped(h);
    h = layer.attn_norm(h);
  }
  if (tape && pre) tape->mlp_norm_in = taped(h);
  h = layer.down.plus(mlp(layer, pre ? layer.mlp_norm(h) : h, pass, tape, last), h);
  if (pre) return h;
  if (tape) tape->mlp_norm_in = taped(h);
  return layer.mlp_norm(h);
}

at::Tensor Transformer::trunk(at::Tensor x, const Pass& pass, const Poll& poll) const {
  if (pass.tape) pass.tape->resize(layers_.size());
  for (size_t i = 0; i < layers_.size(); ++i) {
    if (poll) poll();
    x = apply(i, x, pass);
  }
  return x;
}

at::Tensor Transformer::encode_into(const PackedBatch& batch, const RowSet& rows, const Poll& poll,
                                    FrozenContext* keep) const {
  const PlainDispatch plain;
  check_lengths(batch);
  check_memory(batch.rows(), keep && keep->kv.empty() ? batch.rows() : 0, 0);
  Pass pass{positions_of(batch.cu_seqlens, info_.device), batch.cu_seqlens, batch.cu_seqlens,
            outputs_for(batch, rows)};
  pass.keep = keep;
  return features(embed(batch.tokens, pass.positions), pass, poll);
}

at::Tensor Transformer::encode(const PackedBatch& batch, const RowSet& rows, const Poll& poll,
                               std::unique_ptr<Context>* kept) const {
  if (!kept) return encode_into(batch, rows, poll, nullptr);
  auto context = std::make_unique<FrozenContext>();
  at::Tensor x = encode_into(batch, rows, poll, context.get());
  *kept = std::move(context);
  return x;
}

FrozenContext Transformer::empty_context(int64_t rows) const {
  FrozenContext context;
  for (size_t i = 0; i < layers_.size(); ++i) {
    context.kv.push_back(at::empty({rows, 2 * kv_width()}, tokens_.options()));
  }
  return context;
}

at::Tensor Transformer::encode_active(const PackedBatch& batch, const RowSet& active,
                                      const RowSet& rows, Context& context,
                                      const Poll& poll) const {
  check_lengths(batch);
  FrozenContext& frozen = own(context, batch);
  try {
    return pass_in(frozen, batch, active, rows, poll);
  } catch (...) {
    frozen.spoil();
    throw;
  }
}

at::Tensor Transformer::pass_in(FrozenContext& context, const PackedBatch& batch,
                                const RowSet& active, const RowSet& rows, const Poll& poll) const {
  const PlainDispatch plain;
  check_memory(active.count(), 0, 0);
  const Pass pass = frozen_pass(batch, active, outputs_for(batch, rows), context,
                                positions_of(batch.cu_seqlens, info_.device));
  return features(embed(batch.tokens.index_select(0, active.rows), pass.positions), pass, poll);
}

Pass Transformer::frozen_pass(const PackedBatch& batch, const RowSet& active, const RowSet& outputs,
                              FrozenContext& context, const at::Tensor& positions) const {
  Pass pass{positions.index_select(0, active.rows),
            active.cu_rows,
            batch.cu_seqlens,
            {places(active.rows, outputs.rows), outputs.cu_rows}};
  pass.frozen = &context;
  pass.rows = active.rows;
  pass.valid = active.valid;
  return pass;
}

at::Tensor Transformer::features(at::Tensor x, const Pass& pass, const Poll& poll) const {
  if (config_.embedding_norm) x = embed_norm_(x);
  x = trunk(x, pass, poll);
  if (config_.final_norm) x = final_norm_(x);
  if (config_.head_transform) x = head_norm_(head_dense_.gelu(x, config_.mlp == Mlp::gelu_tanh));
  return x;
}

at::Tensor Transformer::project(const at::Tensor& features) const {
  const PlainDispatch plain;
  return head_(features);
}

at::Tensor Transformer::project_columns(const at::Tensor& features, int64_t from,
                                        int64_t count) const {
  const PlainDispatch plain;
  return head_.is_packed() ? Denoiser::project_columns(features, from, count)
                           : head_.part(from, count)(features);
}

}  // namespace tabes
