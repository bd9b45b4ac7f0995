// Any differentiable model as a Denoiser: a table of input embeddings and a function from
// embeddings to logits. Nothing is known of the function, so there is no frozen context, and a
// gradient costs autograd over every row.
#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "tabes/denoiser.h"
#include "tabes/export.h"

namespace torch::jit {
struct Module;
}

namespace tabes {

// What the function of a ModuleDenoiser is given: B sequences of one length L, no padding.
struct ModuleCall {
  at::Tensor embeddings;  // [B, L, D] in the model's dtype
  // [B, L] int64, for functions that need to know where the masks are. Where candidates are changed
  // (see GradientRequest) the embeddings are no longer those of the tokens.
  at::Tensor tokens;
  // The rows of [B * L] whose attention outputs are to stay in the graph; those of all others are
  // to be constants to autograd (ActiveQueryAttention, arXiv 2602.00250). Null: all rows. A
  // function that cannot tell them apart ignores this; its gradients are then the ordinary ones.
  const RowSet* active = nullptr;
};

// Logits [B, L, V]. Row i of a sequence predicts its token i, or i + 1 under
// ModelInfo::logit_shift. Called with gradients on or off as needed, never under the caller's
// autocast, inference mode or grad mode. It must compute the same result every time, and may be
// called from several threads.
using ModuleFunction = std::function<at::Tensor(const ModuleCall& call)>;

class TABES_API ModuleDenoiser final : public Denoiser {
 public:
  // `embedding_table` [V, D] float32, bfloat16, float16 (on a GPU) or float64; vocabulary, hidden
  // size, dtype and device of `info` are taken from it. Throws InputError if `info` or the table is
  // inconsistent, DeviceError for another dtype or a device that is neither CPU nor CUDA.
  ModuleDenoiser(ModelInfo info, const at::Tensor& embedding_table, ModuleFunction function);

  const ModelInfo& info() const override { return info_; }
  at::Tensor embedding_table() const override { return table_; }

  // The features are the logits themselves. Sequences of equal length are one call of the function.
  at::Tensor encode(const PackedBatch& batch, const RowSet& rows, const Poll& poll = {},
                    std::unique_ptr<Context>* kept = nullptr) const override;
  at::Tensor project(const at::Tensor& features) const override;

  // Computes, and counts, every row of the sequences that hold probes, in both directions and
  // through the vocabulary projection. Throws InputError if autograd finds no way from the logits
  // to the embeddings.
  EntropyGradient entropy_gradient(const GradientRequest& request) const override;

 private:
  // Sequences of one length that the function gets together.
  struct Group;
  std::vector<Group> groups(const PackedBatch& batch, const RowSet& wanted) const;
  // Logits [B * L, V], their shape checked.
  at::Tensor call(const ModuleCall& call) const;

  ModelInfo info_;
  at::Tensor table_;
  ModuleFunction function_;
};

// A TorchScript module whose forward(inputs_embeds [B, L, D]) returns logits [B, L, V], alone or
// first in a tuple. It is switched to eval mode. Its gradients are those of all rows, whatever rows
// are active.
TABES_API std::shared_ptr<const Denoiser> make_module(const torch::jit::Module& module,
                                                      const at::Tensor& embedding_table,
                                                      ModelInfo info);

// The same from a file that torch.jit.save wrote, moved to the table's device. Throws InputError
// if it cannot be read.
TABES_API std::shared_ptr<const Denoiser> load_module(const std::string& path,
                                                      const at::Tensor& embedding_table,
                                                      ModelInfo info);

}  // namespace tabes
