// A bidirectional transformer with frozen weights, and the description that makes one model family
// differ from another.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "tabes/denoiser.h"
#include "tabes/export.h"

namespace tabes {

enum class Norm { rms, layer };
enum class NormPlacement { pre, post };  // before each sublayer, or after its residual sum
enum class Positions { rope, learned };  // half-split rotary in fp32, or an embedding table
enum class Mlp { gelu, gelu_tanh, swiglu, geglu };

// What a model computes. A family is this description plus the names of its tensors; supporting
// another one must not need another model.
struct TransformerConfig {
  std::string family;
  int64_t vocab_size = 0;  // rows of the embedding table and width of the logits
  int64_t hidden_size = 0;
  int64_t num_layers = 0;
  int64_t num_heads = 0;
  int64_t num_kv_heads = 0;
  int64_t head_dim = 0;
  int64_t mlp_size = 0;
  int64_t max_length = 0;
  int64_t token_types = 0;  // rows of the token-type table, 0 for none; type 0 is used

  Norm norm = Norm::rms;
  NormPlacement norm_placement = NormPlacement::pre;
  double norm_eps = 1e-5;
  bool embedding_norm = false;  // a norm right after the input embeddings
  bool final_norm = true;

  Positions positions = Positions::rope;
  double rope_theta = 10000.0;

  bool qkv_bias = false;
  bool attention_out_bias = false;
  bool qk_norm = false;  // RMS norm of each head's query and key before the rotation
  Mlp mlp = Mlp::swiglu;
  bool mlp_bias = false;

  bool head_transform = false;  // dense + GELU + norm before the vocabulary projection
  bool head_bias = false;
  bool head_tied = false;    // the projection is the embedding table
  bool logit_shift = false;  // row i is predicted by the output at row i - 1 (Dream)

  int64_t mask_token_id = -1;
  std::vector<int64_t> eos_token_ids;
  std::optional<int64_t> bos_token_id;
  std::optional<int64_t> pad_token_id;
  std::vector<int64_t> special_token_ids;  // see ModelInfo
};

// Supplies a model's weights, one tensor at a time. `name` is our own name of the tensor:
//   embed.tokens, embed.positions, embed.types, embed.norm.{weight,bias},
//   layers.N.{attn_norm,mlp_norm,q_norm,k_norm}.{weight,bias},
//   layers.N.{q,k,v,attn_out,gate,up,down}.{weight,bias}   (gate only for gated MLPs),
//   final_norm.{weight,bias}, head.dense.{weight,bias}, head.norm.{weight,bias},
//   head.out.{weight,bias}.
// Linear weights are [out, in].
class TABES_API WeightSource {
 public:
  virtual ~WeightSource() = default;

  // Fills `destination`, which has the shape the description asks for and may be a strided view
  // into a fused weight, with the tensor called `name`, converting its dtype. Throws
  // CheckpointError if there is none or its shape differs.
  virtual void read(const std::string& name, at::Tensor destination) = 0;
};

// Builds the model on `device` in `dtype` (float32, bfloat16, float16 on a GPU, or float64 for
// verification).
// `prepack`: see LoadOptions (tabes/checkpoint.h).
// Throws CheckpointError if the description is inconsistent, DeviceError for a device or dtype
// this build does not have.
TABES_API std::shared_ptr<const Denoiser> make_transformer(const TransformerConfig& config,
                                                           WeightSource& weights, at::Device device,
                                                           at::ScalarType dtype,
                                                           bool prepack = true);

}  // namespace tabes
