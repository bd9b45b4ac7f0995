// What every decode has, whoever selects the rows: checked arguments, canvases, errors.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "decode/canvas.h"
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

 protected:
  std::vector<at::Tensor> tokens() const;
  bool unfinished() const;
  // Adds a step's rows to those of the whole decode.
  static void count_rows(const StepRecord& record, GenerateResult& result);
  // Completes the result of a decode whose steps are done.
  void close(GenerateResult& result) const;
  // What to say if memory runs out in a step.
  std::string out_of_memory(int64_t number) const;
  [[noreturn]] static void not_finite(int64_t number, size_t place, int64_t position,
                                      const char* what);

  const Denoiser& model_;
  const ModelInfo& info_;
  const GenerateOptions& options_;
  std::shared_ptr<const Policy> policy_;
  Pace pace_;
  at::Tensor forbidden_;
  std::vector<Canvas> canvases_;
  int64_t rows_ = 0;
  int64_t steps_ = 0;  // of the longest sequence
};

}  // namespace tabes
