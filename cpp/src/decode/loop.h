// The steps of a decode: look, decide, write, record.
#pragma once

#include <ATen/ops/empty.h>

#include <memory>
#include <vector>

#include "decode/decode.h"

namespace tabes {

// The host selects.
class Loop : Decode {
 public:
  explicit Loop(Decode decode);
  GenerateResult run();

 private:
  // One step of every unfinished sequence, and what it has before it is decided.
  struct Step {
    StepRecord record;
    std::vector<Canvas*> live;
    Layout layout;
    Predicted predicted;
    at::Tensor waiting_entropy = at::empty({0});
    // All rows that were looked at, the waiting ones among them, and their entropies.
    std::vector<int64_t> seen;
    std::vector<double> seen_entropy;
  };

  StepRecord step(int64_t number, StepRecord* before);
  // Predictions at the eligible rows; looks at the model only where they are not known already.
  void look(Step& step);
  // Looks at all live sequences in one pass, which keeps a context or is frozen in the one kept.
  void look_at_all(Step& step, bool keep_context);
  // Looks at the live sequences of which nothing is known yet.
  void look_at_new(Step& step);
  // Makes the context kept that of these sequences; false: there is none, or it is to be renewed.
  bool follow_context(const std::vector<Canvas*>& live);
  // Completes a request for the rows it names and runs it.
  // The entropies of what it predicts are numbers.
  // What is predicted at a layout's eligible rows.
  PredictRequest at_eligible(const Layout& layout) const;
  Predicted forward(const std::vector<Canvas*>& canvases, PredictRequest request,
                    StepRecord& record, const char* bad_logits = kBadLogits) const;
  std::vector<Predictions> look_ahead(Step& step, const std::vector<Ahead>& wanted) const;
  Decision decide(Step& step) const;
  // Completes the record of the step before with what has become of its probes.
  void realise(const Step& step, StepRecord& before) const;
  // Entropy of a row that was looked at, NaN of another.
  static double entropy_at(const Step& step, int64_t row);
  // See StepRecord::guesses; `token` is what each eligible row would be.
  std::vector<at::Tensor> guesses(const Step& step, const int64_t* token) const;
  // Writes the best rows and records them; masks others again.
  void write(Step& step, const Decision& decision);
  // How many rows of live sequence b the decision reveals.
  int64_t count_of(const Step& step, const Decision& decision, size_t b) const;
  // Masks rows again and says how many of each live sequence.
  std::vector<int64_t> mask_again(Step& step, const std::vector<int64_t>& rows) const;
  // Of `values`, one of each row and on the CPU, none is NaN.
  static void check_numbers(const StepRecord& record, const std::vector<Canvas*>& canvases,
                            const PackedBatch& batch, const RowSet& rows, const at::Tensor& values,
                            const char* what);

  mutable PolicyStates states_;              // of the policy, and of others that it calls
  std::vector<size_t> context_places_;       // the sequences the context is of
  std::vector<int64_t> context_cu_seqlens_;  // and their offsets
};

}  // namespace tabes
