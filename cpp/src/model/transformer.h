// The native transformer. One file each: building it (transformer_build.cpp), its forward pass
// (transformer.cpp) and its adjoint (transformer_adjoint.cpp).
#pragma once

#include <vector>

#include "batch/rows.h"
#include "model/linear.h"
#include "tabes/transformer.h"

namespace tabes {

struct NormLayer {
  Norm kind = Norm::rms;
  double eps = 0;
  at::Tensor weight, bias;

  at::Tensor operator()(const at::Tensor& x) const;
  // The gradient of x for the gradient of the result.
  at::Tensor adjoint(const at::Tensor& grad, const at::Tensor& x) const;
};

struct Layer {
  NormLayer attn_norm, mlp_norm, q_norm, k_norm;
  Linear qkv, attn_out, up, down;  // `up` holds the gate's rows before its own for gated MLPs
};

// Keys (rotated) and values of every row, [R, 2 * kv_width] a layer.
struct FrozenContext final : Context {
  std::vector<at::Tensor> kv;
  // Where `kv` is memory that replayed passes work on: theirs alone while this is held.
  std::shared_ptr<const void> fixed;

  void select(const at::Tensor& rows) override {
    std::vector<at::Tensor> selected;
    for (const at::Tensor& t : kv) selected.push_back(t.index_select(0, rows));
    kv = std::move(selected);
    fixed.reset();
  }
  // Of a pass that failed in it there is no telling what it holds: nothing, from now on.
  void spoil() noexcept {
    kv.clear();
    fixed.reset();
  }
};

// What the adjoint of one layer needs to know of its forward pass, at the active rows only (in
// the last layer everything after the attention scores at the probe rows only).
struct LayerTape {
  at::Tensor attn_norm_in, mlp_norm_in;  // the norms' inputs
  at::Tensor qk;                         // queries and keys before their norm, if they have one
  at::Tensor q;                          // rotated queries
  at::Tensor kv;                         // keys (rotated) and values of all rows
  at::Tensor mixed, lse;                 // attention's result and log-sum-exp, if it kept them
  at::Tensor up;                         // the MLP before its activation
};

// One way through the trunk.
struct Pass {
  at::Tensor positions;                    // [S] of the rows that are computed
  const std::vector<int64_t>& cu_rows;     // [B + 1] their offsets
  const std::vector<int64_t>& cu_seqlens;  // [B + 1] offsets of all rows, which are the keys
  // Rows of the last layer's output, as numbers among the S.
  RowSet wanted;
  // Frozen context: where the S rows' keys and values are written, which rows they are, and which
  // of them keep what they have there (RowSet::valid).
  FrozenContext* frozen = nullptr;
  at::Tensor rows = {}, valid = {};
  // Where the keys and values are kept: in the memory it has, if it has any.
  FrozenContext* keep = nullptr;
  // Filled if given, for these of the S rows (undefined: all of them).
  std::vector<LayerTape>* tape = nullptr;
  at::Tensor taped = {};

  at::Tensor at_taped(const at::Tensor& t) const {
    return taped.defined() ? t.index_select(0, taped) : t;
  }
};

// Numbers of `rows` within the increasing `all`, which holds them.
at::Tensor places(const at::Tensor& all, const at::Tensor& rows);

// The position of every row in its sequence, [R].
at::Tensor positions_of(const std::vector<int64_t>& cu_seqlens, at::Device device);

// The rows that a gradient's passes compute.
void count_rows(const GradientRequest& request, EntropyGradient& result);

struct TransformerReplay;

class Transformer : public Denoiser {
 public:
  Transformer(const TransformerConfig& config, WeightSource& weights, at::Device device,
              at::ScalarType dtype, bool prepack);

  const ModelInfo& info() const override { return info_; }
  at::Tensor embedding_table() const override { return tokens_; }
  at::Tensor encode(const PackedBatch& batch, const RowSet& rows, const Poll& poll,
                    std::unique_ptr<Context>* kept) const override;
  bool keeps_context() const override { return true; }
  at::Tensor encode_active(const PackedBatch& batch, const RowSet& active, const RowSet& rows,
                           Context& context, const Poll& poll) const override;
  at::Tensor project(const at::Tensor& features) const override;
  at::Tensor project_columns(const at::Tensor& features, int64_t from,
                             int64_t count) const override;
  bool projects_columns() const override { return !head_.is_packed(); }
  EntropyGradient entropy_gradient(const GradientRequest& request) const override;
  bool is_replayable() const override { return replay_ != nullptr; }
  std::unique_ptr<ReplayedDenoiser> replayed() const override;

  // encode_active() that leaves a context in which it fails as it then is.
  at::Tensor pass_in(FrozenContext& context, const PackedBatch& batch, const RowSet& active,
                     const RowSet& rows, const Poll& poll) const;
  // encode() whose context, if one is given, is written into `keep`.
  at::Tensor encode_into(const PackedBatch& batch, const RowSet& rows, const Poll& poll,
                         FrozenContext* keep) const;
  // Room for the context of this many rows.
  FrozenContext empty_context(int64_t rows) const;

 private:
  // Reads the weights of one model part after another.
  class Loader;

  int64_t q_width() const { return config_.num_heads * config_.head_dim; }
  int64_t kv_width() const { return config_.num_kv_heads * config_.head_dim; }
  bool is_pre() const { return config_.norm_placement == NormPlacement::pre; }
  at::Tensor heads(const at::Tensor& rows, int64_t count) const {
    return rows.unflatten(1, {count, config_.head_dim});
  }

  void check_lengths(const PackedBatch& batch) const;
  // A context of this model's, which holds these rows; InputError if it is none.
  FrozenContext& own(Context& context, const PackedBatch& batch) const;
  // On a CPU, where the kernel would kill the process: throws NotEnoughMemory if a pass over so
  // many rows cannot be had. `kept`: of how many rows the keys and values of every layer stay;
  // `taped`: of how many what an adjoint needs stays too.
  void check_memory(int64_t rows, int64_t kept, int64_t taped) const;
  // The rows whose outputs predict `rows`.
  RowSet outputs_for(const PackedBatch& batch, const RowSet& rows) const {
    return config_.logit_shift ? predicting(batch, rows) : rows;
  }
  at::Tensor embed(const at::Tensor& tokens, const at::Tensor& positions) const;
  at::Tensor mlp(const Layer& layer, const at::Tensor& x, const Pass& pass, LayerTape* tape,
                 bool last) const;
  at::Tensor apply(size_t index, const at::Tensor& x, const Pass& pass) const;
  at::Tensor trunk(at::Tensor x, const Pass& pass, const Poll& poll) const;
  // A pass over the active rows in a frozen context, `outputs` being those wanted and `positions`
  // those of all rows.
  Pass frozen_pass(const PackedBatch& batch, const RowSet& active, const RowSet& outputs,
                   FrozenContext& context, const at::Tensor& positions) const;
  // From input embeddings to the features of the pass's wanted rows.
  at::Tensor features(at::Tensor x, const Pass& pass, const Poll& poll) const;

  at::Tensor activation_adjoint(const at::Tensor& grad, const at::Tensor& up) const;
  void qk_norm_adjoint(const Layer& layer, const at::Tensor& grad, const at::Tensor& qk) const;
  // From the gradient of the layer's output at `out` rows to that of its input at `in` rows, all
  // of them among the active ones. `positions` [R]: of all rows.
  at::Tensor adjoint(size_t index, const LayerTape& tape, at::Tensor grad, const RowSet& out,
                     const RowSet& in, const GradientRequest& request,
                     const at::Tensor& positions) const;
  // Entropies of the predictions made from `x`, the trunk's output at the probes, into `entropy`,
  // and the gradient of their weighted sum by x.
  at::Tensor head_adjoint(const at::Tensor& x, const GradientRequest& request,
                          at::Tensor& entropy) const;

  TransformerConfig config_;
  ModelInfo info_;
  at::Tensor tokens_;     // [V, D]
  at::Tensor positions_;  // [max_length, D] learned positions plus token type 0, or undefined
  at::Tensor cos_, sin_;  // [max_length, head_dim / 2], or undefined
  NormLayer embed_norm_, final_norm_, head_norm_;
  std::vector<Layer> layers_;
  Linear head_dense_, head_;
  std::shared_ptr<TransformerReplay> replay_;  // null where nothing records
};

}  // namespace tabes
