#include "decode/counted.h"

#include <atomic>

namespace tabes {
namespace {

// A model may be called from several threads at once.
void add(int64_t& total, int64_t rows) {
  std::atomic_ref<int64_t>(total).fetch_add(rows, std::memory_order_relaxed);
}

}  // namespace

at::Tensor CountedDenoiser::encode(const PackedBatch& batch, const RowSet& rows, const Poll& poll,
                                   std::unique_ptr<Context>* kept) const {
  at::Tensor features = model_.encode(batch, rows, poll, kept);
  add(cost_.forward_rows, batch.rows());
  return features;
}

at::Tensor CountedDenoiser::encode_active(const PackedBatch& batch, const RowSet& active,
                                          const RowSet& rows, Context& context,
                                          const Poll& poll) const {
  at::Tensor features = model_.encode_active(batch, active, rows, context, poll);
  add(cost_.forward_rows, active.count());
  return features;
}

at::Tensor CountedDenoiser::project(const at::Tensor& features) const {
  at::Tensor logits = model_.project(features);
  add(cost_.head_rows, features.size(0));
  return logits;
}

at::Tensor CountedDenoiser::project_columns(const at::Tensor& features, int64_t from,
                                            int64_t count) const {
  at::Tensor logits = model_.project_columns(features, from, count);
  if (from == 0) add(cost_.head_rows, features.size(0));  // the others are the same rows
  return logits;
}

EntropyGradient CountedDenoiser::entropy_gradient(const GradientRequest& request) const {
  EntropyGradient result = model_.entropy_gradient(request);
  add(cost_.forward_rows, result.cost.forward_rows);
  add(cost_.backward_rows, result.cost.backward_rows);
  add(cost_.head_rows, result.cost.head_rows);
  return result;
}

}  // namespace tabes
