// LLaDA (8B, 1.5 and models trained in its layout): a Llama-like bidirectional transformer whose
// configuration and tensor names descend from OLMo.
#include "checkpoint/families.h"

namespace tabes::checkpoint {
namespace {

void refuse_other_computations(const Config& config) {
  config.only_text("block_type", {"llama"}, "llama");
  config.only_text("layer_norm_type", {"rms"}, "rms");
  config.only_text("activation_type", {"silu"}, "silu");
  config.only("rope", true, true);
  config.only("rope_full_precision", true, true);
  for (const char* key :
       {"alibi", "input_emb_norm", "attention_layer_norm", "multi_query_attention", "scale_logits",
        "include_bias", "bias_for_layer_norm"}) {
    config.only(key, false, false);
  }
  config.only("layer_norm_with_affine", true, true);
  config.only_unset("clip_qkv");
  config.only_unset("rope_scaling");
  // Groups of blocks change the tensor names; no published model has them.
  config.integer("block_group_size", {1, 1}, 1);
}

TransformerConfig parse(const Config& config) {
  refuse_other_computations(config);
  TransformerConfig model;
  model.family = "llada";
  model.hidden_size = config.integer("d_model", kWidth);
  model.num_layers = config.integer("n_layers", kLayers);
  read_heads(config, "n_heads", "n_kv_heads", model);
  if (config.has("mlp_hidden_size")) {
    model.mlp_size = config.integer("mlp_hidden_size", kMlpWidth);
  } else {
    model.mlp_size = config.integer("mlp_ratio", {1, 16}) * model.hidden_size;
  }
  // The embedding table may be padded beyond the vocabulary; its rows are what logits range over.
  const int64_t vocabulary = config.integer("vocab_size", kVocabulary);
  model.vocab_size = config.integer("embedding_size", kVocabulary, vocabulary);
  if (model.vocab_size < vocabulary) {
    config.fail_at("embedding_size",
                   "it must not be below vocab_size, " + std::to_string(vocabulary));
  }
  model.max_length = config.integer("max_sequence_length", kLength);
  model.norm_eps = config.number("rms_norm_eps", 1e-20, 0.1, 1e-5);
  model.rope_theta = config.number("rope_theta", 1.0, 1e12, 10000.0);
  model.qkv_bias = config.boolean("include_qkv_bias", false);
  model.head_tied = config.boolean("weight_tying", true);
  return model;
}

std::vector<Copy> copies(const TransformerConfig& model) {
  if (!model.head_tied) return {};
  return {{"embed.tokens", "model.transformer.ff_out.weight"}};
}

constexpr int64_t kRowsOf8B = 126464;  // of LLaDA-8B's embedding table, and 1.5's

// LLaDA-8B's own files name no mask token in older revisions; its code has it as a constant.
int64_t usual_mask_token(const TransformerConfig& model) {
  return model.vocab_size == kRowsOf8B ? 126336 : -1;
}

// <|endoftext|> and <|eot_id|>: its config.json names the first only, but its chat turns end with
// the second, and its decoder treats them alike.
std::vector<int64_t> usual_eos_tokens(const TransformerConfig& model) {
  if (model.vocab_size != kRowsOf8B) return {};
  return {126081, 126348};
}

}  // namespace

const Family& llada_family() {
  static const Family family = {
      .name = "llada",
      .model_types = {"llada"},
      .architectures = {"LLaDAModelLM"},
      .telltale = "model.transformer.blocks.0.ff_proj.weight",
      .outer = "model.",
      .parse = parse,
      .names =
          {
              {"embed.tokens", "model.transformer.wte.weight"},
              {"layers.{}.attn_norm", "model.transformer.blocks.{}.attn_norm"},
              {"layers.{}.mlp_norm", "model.transformer.blocks.{}.ff_norm"},
              {"layers.{}.q", "model.transformer.blocks.{}.q_proj"},
              {"layers.{}.k", "model.transformer.blocks.{}.k_proj"},
              {"layers.{}.v", "model.transformer.blocks.{}.v_proj"},
              {"layers.{}.attn_out", "model.transformer.blocks.{}.attn_out"},
              {"layers.{}.gate", "model.transformer.blocks.{}.ff_proj"},
              {"layers.{}.up", "model.transformer.blocks.{}.up_proj"},
              {"layers.{}.down", "model.transformer.blocks.{}.ff_out"},
              {"final_norm", "model.transformer.ln_f"},
              {"head.out", "model.transformer.ff_out"},
          },
      .heads = {},
      .buffers = {"*.rotary_emb.inv_freq"},
      .copies = copies,
      .mask_texts = {"<|mdm_mask|>", "<|mask|>", "<|MASK|>", "[MASK]", "<mask>"},
      .usual_mask_token = usual_mask_token,
      .eos_texts = {"<|endoftext|>", "<|eot_id|>"},
      .usual_eos_tokens = usual_eos_tokens,
      .usual_names = {},
      // Its reserved tokens are many, and turns of a conversation are made of them.
      .keeps_special_apart = false,
  };
  return family;
}

}  // namespace tabes::checkpoint
