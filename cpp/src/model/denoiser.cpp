#include "tabes/denoiser.h"

#include "messages.h"

namespace tabes {

at::Tensor Denoiser::encode_active(const PackedBatch&, const RowSet&, const RowSet&, Context&,
                                   const Poll&) const {
  refuse("this model ('", info().family, "') keeps no context, so no pass can be frozen");
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
