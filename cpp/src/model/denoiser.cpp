#include "tabes/denoiser.h"

#include "messages.h"

namespace tabes {

at::Tensor Denoiser::encode_active(const PackedBatch&, const RowSet&, const RowSet&, Context&,
                                   const Poll&) const {
  refuse("this model ('", info().family, "') keeps no context, so no pass can be frozen");
}

at::Tensor Denoiser::project_columns(const at::Tensor& features, int64_t from,
                                     int64_t count) const {
  return project(features).narrow(1, from, count);
}

EntropyGradient Denoiser::entropy_gradient(const GradientRequest&) const {
  refuse("this model ('", info().family,
         "') gives no gradients of its input embeddings, which influence scores and BoE steering "
         "need; use another policy");
}

std::unique_ptr<ReplayedDenoiser> Denoiser::replayed() const {
  return nullptr;
}

}  // namespace tabes
