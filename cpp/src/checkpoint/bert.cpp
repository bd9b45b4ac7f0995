// BertForMaskedLM and BertForPreTraining, whose next-sentence head is left out.
#include "checkpoint/families.h"

namespace tabes::checkpoint {
namespace {

TransformerConfig parse(const Config& config) {
  config.only_text("hidden_act", {"gelu", "gelu_new"}, "gelu");
  config.only_text("position_embedding_type", {"absolute"}, "absolute");
  config.only("is_decoder", false, false);
  config.only("add_cross_attention", false, false);
  config.only_unset("pruned_heads");

  TransformerConfig model;
  model.family = "bert";
  model.positions = Positions::learned;
  model.norm = Norm::layer;
  model.norm_placement = NormPlacement::post;
  model.embedding_norm = true;
  model.final_norm = false;
  model.qkv_bias = model.attention_out_bias = model.mlp_bias = true;
  model.head_transform = model.head_bias = true;

  model.vocab_size = config.integer("vocab_size", kVocabulary);
  model.hidden_size = config.integer("hidden_size", kWidth);
  model.num_layers = config.integer("num_hidden_layers", kLayers);
  read_heads(config, "num_attention_heads", "", model);
  model.mlp_size = config.integer("intermediate_size", kMlpWidth);
  model.max_length = config.integer("max_position_embeddings", kLength);
  model.token_types = config.integer("type_vocab_size", kTokenTypes, 2);
  model.norm_eps = config.number("layer_norm_eps", 1e-20, 0.1, 1e-12);
  model.mlp = config.string("hidden_act", "gelu") == "gelu" ? Mlp::gelu : Mlp::gelu_tanh;
  model.head_tied = config.boolean("tie_word_embeddings", true);
  return model;
}

std::vector<Copy> copies(const TransformerConfig& model) {
  std::vector<Copy> list = {{"head.out.bias", "cls.predictions.decoder.bias"}};
  if (model.head_tied) list.push_back({"embed.tokens", "cls.predictions.decoder.weight"});
  return list;
}

int64_t usual_mask_token(const TransformerConfig&) {
  return -1;
}

std::vector<int64_t> usual_eos_tokens(const TransformerConfig&) {
  return {};
}

}  // namespace

const Family& bert_family() {
  static const Family family = {
      .name = "bert",
      .model_types = {"bert"},
      .architectures = {"BertForMaskedLM", "BertForPreTraining"},
      .telltale = "bert.embeddings.word_embeddings.weight",
      .outer = {},
      .parse = parse,
      .names =
          {
              {"embed.tokens", "bert.embeddings.word_embeddings.weight"},
              {"embed.positions", "bert.embeddings.position_embeddings.weight"},
              {"embed.types", "bert.embeddings.token_type_embeddings.weight"},
              {"embed.norm", "bert.embeddings.LayerNorm"},
              {"layers.{}.q", "bert.encoder.layer.{}.attention.self.query"},
              {"layers.{}.k", "bert.encoder.layer.{}.attention.self.key"},
              {"layers.{}.v", "bert.encoder.layer.{}.attention.self.value"},
              {"layers.{}.attn_out", "bert.encoder.layer.{}.attention.output.dense"},
              {"layers.{}.attn_norm", "bert.encoder.layer.{}.attention.output.LayerNorm"},
              {"layers.{}.up", "bert.encoder.layer.{}.intermediate.dense"},
              {"layers.{}.down", "bert.encoder.layer.{}.output.dense"},
              {"layers.{}.mlp_norm", "bert.encoder.layer.{}.output.LayerNorm"},
              {"head.dense", "cls.predictions.transform.dense"},
              {"head.norm", "cls.predictions.transform.LayerNorm"},
              {"head.out.weight", "cls.predictions.decoder.weight"},
              {"head.out.bias", "cls.predictions.bias"},
              {"head.out.bias", "cls.predictions.decoder.bias"},
          },
      .heads = {"bert.pooler.*", "cls.seq_relationship.*"},
      .buffers = {"bert.embeddings.position_ids", "bert.embeddings.token_type_ids"},
      .copies = copies,
      .mask_texts = {"[MASK]", "<mask>", "<|mask|>", "<MASK>"},
      .usual_mask_token = usual_mask_token,
      .eos_texts = {},
      .usual_eos_tokens = usual_eos_tokens,
      .usual_names = {{"pad_token", "[PAD]"}, {"sep_token", "[SEP]"}, {"cls_token", "[CLS]"}},
      .keeps_special_apart = true,
  };
  return family;
}

}  // namespace tabes::checkpoint
