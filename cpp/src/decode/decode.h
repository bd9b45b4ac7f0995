// What every decode has, whoever selects the rows: checked arguments, canvases, errors.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "decode/canvas.h"
#include "decode/predict.h"
#include "out_of_memory.h"
#include "tabes/generate.h"

namespace tabes {

class Decode {
 public:
  // Throws InputError for what generate() refuses. All three are to outlive it.
  Decode(const Denoiser& model, const std::vector<at::Tensor>& sequences,
         const GenerateOptions& options);

  // Why rows cannot be selected on the device; empty if they can be.
  std::string bound_to_host() const;
  // Whether the host knows beforehand how many rows every step reveals.
  bool knows_counts() const { return pace_ == Pace::quota; }
  // From now on passes are recorded and replayed, unless another decode is at that.
  void replay_passes();
  bool replays_passes() const { return replayed_ != nullptr; }

 protected:
  static constexpr const char* kBadLogits =
      "the model's logits hold NaN or +infinity, or are -infinity at every token that may be "
      "written; check the checkpoint and try dtype float32";
  static constexpr const char* kScoreNaN = "the policy's score is NaN";

  std::vector<at::Tensor> tokens() const;
  bool unfinished() const;
  // How many steps there will be at most, step `number` being the next.
  int64_t most_steps(int64_t number) const;
  // The fewest rows that a policy of its own pace may reveal of a sequence.
  int64_t least_count(const Schedule& schedule) const;
  // Adds a step's rows to those of the whole decode.
  static void count_rows(const StepRecord& record, GenerateResult& result);
  // Completes the result of a decode whose steps are done.
  void close(GenerateResult& result) const;
  // Whether the next pass may be frozen in context_: there is one, and it is not to be renewed yet.
  bool may_freeze() const;
  // Runs a request as a pass over the `active` rows in context_, or if there are none as a full
  // one, whose context, if it was asked to keep one, is context_ from then on.
  Predicted in_context(PredictRequest request, const std::optional<RowSet>& active,
                       const std::function<Predicted(const PredictRequest&)>& run);
  // What `work`, a step's, returns. If memory runs out, DeviceError with advice, and what was
  // recorded is dropped, so that the model can be used.
  template <typename Work>
  auto within_step(int64_t number, Work&& work) {
    return within_memory(std::forward<Work>(work), [&] {
      context_.reset();
      if (replayed_) replayed_->forget();
      return out_of_memory(number);
    });
  }
  [[noreturn]] static void not_finite(int64_t number, size_t place, int64_t position,
                                      const char* what);

  const Denoiser& model() const { return replayed_ ? *replayed_ : model_; }

  const ModelInfo& info_;
  const GenerateOptions& options_;
  std::shared_ptr<const Policy> policy_;
  Pace pace_;
  at::Tensor forbidden_;
  std::vector<Canvas> canvases_;
  std::unique_ptr<ReplayedDenoiser> replayed_;
  std::unique_ptr<Context> context_;  // of the last pass
  int64_t rows_ = 0;

 private:
  // What to say if memory runs out in a step.
  std::string out_of_memory(int64_t number) const;

  const Denoiser& model_;
  int64_t since_full_ = 0;  // passes since the last full one, which counts
};

}  // namespace tabes
