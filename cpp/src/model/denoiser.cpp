#include "tabes/denoiser.h"

#include "messages.h"

namespace tabes {

EntropyGradient Denoiser::entropy_gradient(const GradientRequest&) const {
  refuse("this model ('", info().family,
         "') gives no gradients of its input embeddings, which influence scores and BoE steering "
         "need; use another policy");
}

}  // namespace tabes
