// The interface between masked diffusion models and the decoding loop.
//
// Rows are the currency. A batch is packed: the tokens of B sequences lie one after another in one
// vector of R tokens, sequence b owning rows cu_seqlens[b] .. cu_seqlens[b+1]-1 (the varlen
// convention of FlashAttention). There is no padding, so sequences of different lengths share a
// batch at no cost, and "rows" always means indices into [0, R).
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "tabes/export.h"

namespace tabes {

struct ModelInfo {
  std::string family;       // "llada", "bert", ...
  int64_t vocab_size = 0;   // width of the logits, V
  int64_t hidden_size = 0;  // width of the input embeddings, D
  int64_t num_layers = 0;
  int64_t max_length = 0;              // longest sequence the model was made for, in tokens
  int64_t parameters = 0;              // number of weights
  int64_t mask_token_id = -1;          // always in [0, V)
  std::vector<int64_t> eos_token_ids;  // tokens that end a text; may be empty
  std::optional<int64_t> bos_token_id;
  std::optional<int64_t> pad_token_id;
  // Tokens that are no text, which generate() writes only when asked to: [UNK], [PAD], [CLS] and
  // the like of BERT-like models. Sorted, neither the mask nor end tokens among them; may be empty.
  std::vector<int64_t> special_token_ids;
  bool logit_shift = false;  // row i is predicted by the output at row i - 1 (Dream)
  at::Device device = at::kCPU;
  at::ScalarType dtype = at::kFloat;
};

struct PackedBatch {
  at::Tensor tokens;                // [R] int64, on the model's device
  std::vector<int64_t> cu_seqlens;  // [B + 1], cu_seqlens[0] = 0, cu_seqlens[B] = R, increasing

  int64_t rows() const { return cu_seqlens.back(); }
  int64_t size() const { return static_cast<int64_t>(cu_seqlens.size()) - 1; }
};

// Some rows of a packed batch, in order: those of sequence b are rows[cu_rows[b] : cu_rows[b + 1]].
struct RowSet {
  at::Tensor rows;               // [n] int64, on the model's device, increasing
  std::vector<int64_t> cu_rows;  // [B + 1]
  // [n] bool: false for rows that only fill up the number, so that the host need not know it. They
  // are computed and change nothing: as active rows they count as inactive. Undefined: none does.
  at::Tensor valid = {};
  // [n] int64 on the CPU: the same numbers, where the host chose them. Undefined: only `rows` is.
  at::Tensor host = {};

  int64_t count() const { return cu_rows.back(); }
  // The numbers on the CPU, [n] int64; waits for the device where only it knows them.
  at::Tensor on_host() const { return host.defined() ? host : rows.to(at::kCPU); }
};

// Token rows that were computed.
struct Cost {
  int64_t forward_rows = 0;   // through the trunk, all passes counted
  int64_t backward_rows = 0;  // through its adjoint
  int64_t head_rows = 0;      // through the vocabulary projection

  Cost& operator+=(const Cost& other) {
    forward_rows += other.forward_rows;
    backward_rows += other.backward_rows;
    head_rows += other.head_rows;
    return *this;
  }
};

// Called now and then during long computations; it may throw to stop them.
using Poll = std::function<void()>;

// What a forward pass leaves behind for the frozen context: every row's attention keys and values.
// Opaque; only the model that made it can use it, in one thread at a time.
class TABES_API Context {
 public:
  virtual ~Context() = default;
  // Keeps what belongs to these rows only, in their order: `rows` [n] int64.
  virtual void select(const at::Tensor& rows) = 0;
};

// A question about a changed batch: how does the summed entropy of some rows' predictions depend
// on the input embeddings of others?
struct GradientRequest {
  const PackedBatch& batch;
  // The active rows of ActiveQueryAttention (arXiv 2602.00250): in the adjoint the attention
  // outputs of all other rows are constants. Holds the candidates and the probes. All rows: the
  // ordinary gradient.
  const RowSet& active;
  const RowSet& candidates;  // rows whose embeddings are changed and whose gradient is wanted
  const RowSet& probes;      // rows whose entropies are summed
  at::Tensor offset;         // [candidates, D], added to the candidates' input embeddings
  at::Tensor weight;         // [probes] real: each probe's entropy counts so much; undefined: 1
  at::Tensor forbidden;      // [f] int64: tokens of probability 0
  // Frozen context: inactive rows keep the keys and values they have in this, and only active rows
  // are computed. It is left as it was found, if the pass throws as well. Null: the exact forward
  // pass.
  Context* frozen = nullptr;
  Poll poll = {};
};

struct EntropyGradient {
  at::Tensor gradient;  // [candidates, D] float32, float64 of a float64 model
  at::Tensor entropy;   // [probes] real: nats, of the changed batch
  Cost cost;
};

class ReplayedDenoiser;

// A frozen model that predicts every position from all the others. Implementations are immutable
// after construction: all const members may be called from several threads at once.
class TABES_API Denoiser {
 public:
  virtual ~Denoiser() = default;

  virtual const ModelInfo& info() const = 0;

  // Input embeddings [V, D] in the model's dtype; row v is e(v).
  virtual at::Tensor embedding_table() const = 0;

  // Features [n, F] from which project() computes the logits of the n wanted rows. Throws
  // InputError if a sequence is empty or longer than info().max_length, or if a token id is
  // outside the vocabulary. `kept`, if given, receives the pass's context for entropy_gradient(),
  // null from a model that has none.
  virtual at::Tensor encode(const PackedBatch& batch, const RowSet& rows, const Poll& poll = {},
                            std::unique_ptr<Context>* kept = nullptr) const = 0;

  // Whether encode() leaves a context.
  virtual bool keeps_context() const { return false; }

  // The same in a frozen context: the `active` rows, which must hold all that predict `rows`, are
  // computed, and their keys and values in the context are those of this pass from then on; all
  // other rows keep what they had. Throws InputError for a model that keeps no context, and for a
  // context that is not of this model and batch. If it throws while it computes, the context is
  // spoiled: passes in it are refused with InputError from then on.
  virtual at::Tensor encode_active(const PackedBatch& batch, const RowSet& active,
                                   const RowSet& rows, Context& context,
                                   const Poll& poll = {}) const;

  // Logits [n, V] of features [n, F], in the model's dtype. Apart from encode() so that a caller
  // can take the rows in pieces and never hold n * V numbers.
  virtual at::Tensor project(const at::Tensor& features) const = 0;

  // Its columns from .. from + count; whether they can be had at their own cost alone.
  virtual at::Tensor project_columns(const at::Tensor& features, int64_t from, int64_t count) const;
  virtual bool projects_columns() const { return false; }

  // The gradient of the probes' summed entropy by the candidates' input embeddings. Models need not
  // have it; without it InputError says that influence and BoE steering are not to be had.
  virtual EntropyGradient entropy_gradient(const GradientRequest& request) const;

  // Whether replayed() is there for this model on its device.
  virtual bool is_replayable() const { return false; }

  // The same model, which must outlive it, with passes that are recorded (CUDA graphs) when a shape
  // comes back and replayed from then on. What was recorded stays with the model for the next one;
  // there is one at a time. Null while somebody has it.
  virtual std::unique_ptr<ReplayedDenoiser> replayed() const;
};

// For one thread, with the device's current stream as it was when replayed() gave it.
class TABES_API ReplayedDenoiser : public Denoiser {
 public:
  virtual int64_t replays() const = 0;  // passes replayed since it was given
  // Drops what was recorded, and its memory, if no context that a pass has kept lies there.
  virtual void forget() = 0;
};

}  // namespace tabes
