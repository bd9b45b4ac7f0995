// From model to predictions: the forward pass, guidance, forbidden tokens, statistics, and the
// token that would be written at each row.
#pragma once

#include <memory>

#include "batch/rows.h"
#include "tabes/generate.h"

namespace tabes {

struct PredictRequest {
  const PackedBatch& batch;
  const RowSet& rows;
  // Canvas of the unguided pass (given tokens masked), of the same lengths; null: no guidance.
  const PackedBatch* unguided = nullptr;
  at::Tensor forbidden = {};  // [f] int64: every token of probability 0, the mask among them
  const GenerateOptions& options;
  // [n] float64 in (0, 1) on the model's device, where the temperature is above 0.
  at::Tensor uniforms = {};
  bool keep_context = false;
  // A pass in a frozen context: these rows are computed, the rest is as `context` has it.
  const RowSet* active = nullptr;
  Context* context = nullptr;
};

struct Predicted {
  Predictions predictions;  // at request.rows
  at::Tensor features;      // [n, F] of these rows, without guidance
  at::Tensor entropy = {};  // [n] float64 on the CPU: the predictions', once the host has looked
  std::unique_ptr<Context> context;  // if it was to be kept; its first rows are the batch's
};

// What is predicted at no row.
Predictions no_predictions(at::Device device);

// The logits exist for some rows at a time only.
Predicted predict(const Denoiser& model, const PredictRequest& request);

}  // namespace tabes
