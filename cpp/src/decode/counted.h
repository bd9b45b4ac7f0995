// A model that counts what is computed with it.
#pragma once

#include <memory>

#include "tabes/policy.h"

namespace tabes {

// The model as policies see it, so that none has to say what it cost. Both are to outlive it.
class CountedDenoiser final : public Denoiser {
 public:
  CountedDenoiser(const Denoiser& model, Cost& cost) : model_(model), cost_(cost) {}

  const ModelInfo& info() const override { return model_.info(); }
  at::Tensor embedding_table() const override { return model_.embedding_table(); }
  at::Tensor encode(const PackedBatch& batch, const RowSet& rows, const Poll& poll,
                    std::unique_ptr<Context>* kept) const override;
  bool keeps_context() const override { return model_.keeps_context(); }
  at::Tensor encode_active(const PackedBatch& batch, const RowSet& active, const RowSet& rows,
                           Context& context, const Poll& poll) const override;
  at::Tensor project(const at::Tensor& features) const override;
  at::Tensor project_columns(const at::Tensor& features, int64_t from,
                             int64_t count) const override;
  bool projects_columns() const override { return model_.projects_columns(); }
  EntropyGradient entropy_gradient(const GradientRequest& request) const override;

 private:
  const Denoiser& model_;
  Cost& cost_;
};

}  // namespace tabes
