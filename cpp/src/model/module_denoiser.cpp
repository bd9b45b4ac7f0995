#include "tabes/module_denoiser.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/zeros.h>
#include <torch/csrc/autograd/autograd.h>

#include <algorithm>
#include <map>

#include "batch/forbidden.h"
#include "batch/pieces.h"
#include "batch/rows.h"
#include "forked.h"
#include "messages.h"
#include "model/device.h"
#include "model/precision.h"
#include "ops/call.h"
#include "ops/ops.h"
#include "plain_dispatch.h"

namespace tabes {

struct ModuleDenoiser::Group {
  int64_t length;
  std::vector<int64_t> sequences;  // of the batch, rising

  // Row numbers in [B * L] of some rows of the batch, and where each stands among those.
  struct Rows {
    std::vector<int64_t> local, place, cu{0};
    RowSet set(at::Device device) const { return row_set(local, cu, device); }
  };
  Rows rows(const PackedBatch& batch, const RowSet& set) const {
    const at::Tensor held = set.on_host();
    const int64_t* row = held.const_data_ptr<int64_t>();
    Rows found;
    for (size_t k = 0; k < sequences.size(); ++k) {
      const int64_t b = sequences[k];
      for (int64_t i = set.cu_rows[b]; i < set.cu_rows[b + 1]; ++i) {
        found.local.push_back(static_cast<int64_t>(k) * length + row[i] - batch.cu_seqlens[b]);
        found.place.push_back(i);
      }
      found.cu.push_back(static_cast<int64_t>(found.local.size()));
    }
    return found;
  }
  int64_t size() const { return static_cast<int64_t>(sequences.size()); }
  int64_t count() const { return size() * length; }

  // [B, L]. A copy, so that tokens of the caller's inference mode do no harm.
  at::Tensor tokens(const PackedBatch& batch) const {
    at::Tensor t = at::empty({size(), length}, batch.tokens.options());
    for (int64_t k = 0; k < size(); ++k) {
      t.select(0, k).copy_(batch.tokens.narrow(0, batch.cu_seqlens[sequences[k]], length));
    }
    return t;
  }
};

ModuleDenoiser::ModuleDenoiser(ModelInfo info, const at::Tensor& embedding_table,
                               ModuleFunction function)
    : info_(std::move(info)), function_(std::move(function)) {
  // Who wraps a model has run it, or will.
  if (embedding_table.defined()) enter(embedding_table.device());
  const OpenDispatch open(/*grad=*/false);
  if (!embedding_table.defined() || embedding_table.dim() != 2 || embedding_table.numel() == 0) {
    refuse("the embedding table must be [vocabulary, width], not ",
           embedding_table.defined() ? text(embedding_table.sizes()) : "missing");
  }
  const at::ScalarType type = embedding_table.scalar_type();
  if (!is_model_type(type, embedding_table.device())) {
    throw DeviceError(text("the embedding table is ", type, " on ", embedding_table.device(),
                           "; models are float32 or bfloat16, float16 on a GPU, or float64 for ",
                           "verification"));
  }
  check_device(embedding_table.device());
  table_ = embedding_table.is_inference() ? embedding_table.clone() : embedding_table.detach();
  info_.vocab_size = table_.size(0);
  info_.hidden_size = table_.size(1);
  info_.device = table_.device();
  info_.dtype = type;
  const auto inside = [&](int64_t id, const char* what) {
    if (id >= 0 && id < info_.vocab_size) return;
    refuse(what, " ", id, " is outside the vocabulary of ", info_.vocab_size,
           " (the rows of the embedding table)");
  };
  inside(info_.mask_token_id, "mask token");
  for (int64_t id : info_.eos_token_ids) inside(id, "end token");
  for (int64_t id : info_.special_token_ids) inside(id, "special token");
  info_.special_token_ids =
      never_text(info_.special_token_ids, info_.mask_token_id, info_.eos_token_ids);
  if (info_.max_length < 1) refuse("max_length must be at least 1, not ", info_.max_length);
  if (!function_) refuse("a model needs a function from embeddings to logits");
}

std::vector<ModuleDenoiser::Group> ModuleDenoiser::groups(const PackedBatch& batch,
                                                          const RowSet& wanted) const {
  std::map<int64_t, std::vector<int64_t>> by_length;
  for (int64_t b = 0; b < batch.size(); ++b) {
    const int64_t length = batch.cu_seqlens[b + 1] - batch.cu_seqlens[b];
    if (length < 1 || length > info_.max_length) {
      refuse("sequence ", b, " has ", length, " tokens; this model takes 1 to ", info_.max_length);
    }
    if (wanted.cu_rows[b] < wanted.cu_rows[b + 1]) by_length[length].push_back(b);
  }
  std::vector<Group> result;
  for (const auto& [length, sequences] : by_length) {
    const int64_t bytes =
        length * info_.vocab_size * static_cast<int64_t>(c10::elementSize(info_.dtype));
    const auto most = static_cast<size_t>(std::max<int64_t>(1, kLogitBytes / bytes));
    for (size_t from = 0; from < sequences.size(); from += most) {
      const auto first = sequences.begin() + static_cast<int64_t>(from);
      const size_t count = std::min(most, sequences.size() - from);
      result.push_back({length, {first, first + static_cast<int64_t>(count)}});
    }
  }
  return result;
}

at::Tensor ModuleDenoiser::call(const ModuleCall& call) const {
  const at::Tensor logits = function_(call);
  const int64_t b = call.tokens.size(0), length = call.tokens.size(1);
  if (!logits.defined() || logits.dim() != 3 || logits.size(0) != b || logits.size(1) != length ||
      logits.size(2) != info_.vocab_size) {
    refuse("the model gave logits of shape ",
           logits.defined() ? text(logits.sizes()) : "none at all", " for embeddings ",
           call.embeddings.sizes(), " and a vocabulary of ", info_.vocab_size, "; expected [", b,
           ", ", length, ", ", info_.vocab_size, "]");
  }
  if (!logits.is_floating_point()) refuse("the model gave logits of type ", logits.scalar_type());
  return logits.to(info_.device, info_.dtype).flatten(0, 1);
}

at::Tensor ModuleDenoiser::encode(const PackedBatch& batch, const RowSet& rows, const Poll& poll,
                                  std::unique_ptr<Context>* kept) const {
  const OpenDispatch open(/*grad=*/false);
  if (kept) kept->reset();
  const RowSet outputs = info_.logit_shift ? predicting(batch, rows) : rows;
  at::Tensor result = at::empty({outputs.count(), info_.vocab_size}, table_.options());
  for (const Group& group : groups(batch, outputs)) {
    if (poll) poll();
    const at::Tensor tokens = group.tokens(batch);
    const at::Tensor embeddings = table_.index_select(0, tokens.flatten());
    const at::Tensor logits = call({embeddings.view({group.size(), group.length, -1}), tokens});
    const Group::Rows own = group.rows(batch, outputs);
    const at::Tensor chosen = logits.index_select(0, to_tensor(own.local, info_.device));
    if (chosen.size(0) == result.size(0)) return chosen;
    result.index_copy_(0, to_tensor(own.place, info_.device), chosen);
  }
  return result;
}

at::Tensor ModuleDenoiser::project(const at::Tensor& features) const {
  const PlainDispatch plain;
  return features.clone();  // callers write to what they get
}

EntropyGradient ModuleDenoiser::entropy_gradient(const GradientRequest& request) const {
  const OpenDispatch open(/*grad=*/true);
  if (request.frozen) refuse("this model keeps no frozen context; use context=\"exact\"");
  const PackedBatch& batch = request.batch;
  const RowSet& probes = request.probes;
  const RowSet outputs = info_.logit_shift ? predicting(batch, probes) : probes;
  const auto real = table_.options().dtype(ops::accumulate_type(info_.dtype));
  const double scale = adjoint_scale(info_.dtype);
  const at::Tensor weight = scale * (request.weight.defined() ? request.weight.to(real)
                                                              : at::ones({probes.count()}, real));
  EntropyGradient result;
  result.gradient = at::zeros({request.candidates.count(), info_.hidden_size}, real);
  result.entropy = at::empty({probes.count()}, real);
  for (const Group& group : groups(batch, outputs)) {
    if (request.poll) request.poll();
    const Group::Rows changed = group.rows(batch, request.candidates);
    const Group::Rows asked = group.rows(batch, outputs);
    const RowSet active = group.rows(batch, request.active).set(info_.device);
    const at::Tensor at_changed = to_tensor(changed.local, info_.device);
    const at::Tensor place = to_tensor(changed.place, info_.device);
    const at::Tensor asked_place = to_tensor(asked.place, info_.device);
    const at::Tensor tokens = group.tokens(batch);
    const at::Tensor base = table_.index_select(0, tokens.flatten());
    const at::Tensor leaf = (base.index_select(0, at_changed) +
                             request.offset.index_select(0, place).to(base.scalar_type()))
                                .detach()
                                .requires_grad_();
    const at::Tensor x = base.index_copy(0, at_changed, leaf);
    const at::Tensor logits = call({x.view({group.size(), group.length, -1}), tokens,
                                    active.count() < group.count() ? &active : nullptr})
                                  .index_select(0, to_tensor(asked.local, info_.device));
    result.cost.forward_rows += group.count();
    result.cost.head_rows += group.count();

    at::Tensor seed = logits.detach().clone(at::MemoryFormat::Contiguous);
    forbid(seed, request.forbidden);
    const ops::RowStatistics s = ops::row_statistics(seed);
    result.entropy.index_copy_(0, asked_place, s.entropy);
    if (changed.local.empty()) continue;
    if (!logits.requires_grad()) {
      refuse(
          "autograd finds no way from the model's logits to its input embeddings; the function "
          "must be differentiable and must not detach them or switch gradients off");
    }
    ops::entropy_adjoint_(seed, s.argmax, s.max_prob, s.entropy,
                          weight.index_select(0, asked_place));
    const at::Tensor gradient = torch::autograd::grad({logits}, {leaf}, {seed},
                                                      /*retain_graph=*/false,
                                                      /*create_graph=*/false,
                                                      /*allow_unused=*/true)[0];
    // A part of the model may be trainable while its input is not reached.
    if (!gradient.defined()) {
      refuse("the model's logits do not depend on its input embeddings as far as autograd can see");
    }
    result.gradient.index_copy_(0, place, gradient.detach().to(real) / scale);
    result.cost.backward_rows += group.count();
  }
  return result;
}

}  // namespace tabes
