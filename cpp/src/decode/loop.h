// The steps of a decode: look, decide, write, record.
#pragma once

#include <memory>
#include <vector>

#include "decode/canvas.h"
#include "decode/predict.h"
#include "tabes/generate.h"

namespace tabes {

class Loop {
 public:
  // Throws InputError for what generate() refuses.
  Loop(const Denoiser& model, const std::vector<at::Tensor>& sequences,
       const GenerateOptions& options);
  GenerateResult run();

 private:
  // One step of every unfinished sequence, and what it has before it is decided.
  struct Step {
    StepRecord record;
    std::vector<Canvas*> live;
    Layout layout;
    Predicted predicted;
    at::Tensor entropy;  // [n] float64 on the CPU, finite
  };

  StepRecord step(int64_t number, StepRecord* before);
  // Predictions at the eligible rows; looks at the model only where they are not known already.
  void look(Step& step);
  Predicted forward(const std::vector<Canvas*>& canvases, const Layout& layout, bool keep_context,
                    StepRecord& record) const;
  std::vector<Predictions> look_ahead(Step& step, const std::vector<Ahead>& wanted) const;
  Decision decide(Step& step) const;
  // Completes the record of the step before with what has become of its probes.
  void realise(const Step& step, StepRecord& before) const;
  // Writes the best rows and records them; masks others again.
  void write(Step& step, const Decision& decision);
  // How many rows of live sequence b the decision reveals.
  int64_t count_of(const Step& step, const Decision& decision, size_t b) const;
  // Masks rows again and says how many of each live sequence.
  std::vector<int64_t> mask_again(Step& step, const std::vector<int64_t>& rows) const;
  void check_finite(const StepRecord& record, const std::vector<Canvas*>& canvases,
                    const Layout& layout, const at::Tensor& values, const char* what) const;
  std::vector<at::Tensor> tokens() const;
  bool unfinished() const;

  const Denoiser& model_;
  const ModelInfo& info_;
  const GenerateOptions& options_;
  std::shared_ptr<const Policy> policy_;
  Pace pace_;
  std::unique_ptr<PolicyState> state_;
  at::Tensor forbidden_;
  std::vector<Canvas> canvases_;
  int64_t rows_ = 0;
  int64_t steps_ = 0;  // of the longest sequence
};

}  // namespace tabes
