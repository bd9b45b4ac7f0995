// config.json and the families' descriptions.
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "checkpoint/config.h"
#include "checkpoint/families.h"
#include "checkpoint_models.h"
#include "tabes/checkpoint.h"

namespace tabes::testing {
namespace {

using checkpoint::Config;

struct Case {
  std::string key;
  std::string value;     // JSON text; empty: the key is left out
  std::string fragment;  // of the message, beside the file's name and the key
};

LoadOptions mask(int64_t id) {
  LoadOptions options;
  options.mask_token_id = id;
  return options;
}

// Each change of `model`'s config must be rejected by a message that names file and key.
void expect_config_rejected(const TinyModel& model, const std::vector<Case>& cases) {
  const TempFolder folder;
  for (const Case& c : cases) {
    SCOPED_TRACE(c.key + " = " + c.value);
    TinyModel changed = model;
    changed.config.erase(c.key);
    if (!c.value.empty()) changed.config[c.key] = c.value;
    changed.write(folder);
    expect_rejected([&] { load(folder.path()); }, folder.path("config.json"), c.fragment);
    expect_rejected([&] { load(folder.path()); }, "\"" + c.key + "\"", "");
  }
}

TEST(CheckpointConfig, RejectsNumbersOutOfRange) {
  const std::string layers = "it must be an integer in 1..10000";
  expect_config_rejected(tiny_llada(),
                         {{"n_layers", "", "missing"},
                          {"n_layers", "null", "null: " + layers},
                          {"n_layers", "0", "is 0: " + layers},
                          {"n_layers", "-1", layers},
                          {"n_layers", "2.0", "is 2.0: " + layers},
                          {"n_layers", "2.5", layers},
                          {"n_layers", "1e1", layers},
                          {"n_layers", "\"2\"", "is \"2\": " + layers},
                          {"n_layers", "true", layers},
                          {"n_layers", "[2]", "an array"},
                          {"n_layers", "{}", "an object"},
                          {"n_layers", "1000001", layers},
                          {"n_layers", "4294967298", layers},
                          {"n_layers", "9223372036854775807", layers},
                          {"n_layers", "9223372036854775808", layers},
                          {"n_layers", "18446744073709551618", layers},
                          {"d_model", "0", "1..1048576"},
                          {"d_model", "-8", "1..1048576"},
                          {"d_model", "4294967304", "1..1048576"},
                          {"n_heads", "3", "it must divide the hidden size, 8"},
                          {"n_heads", "8", "heads of odd size 1"},
                          {"n_heads", "0", "1..65536"},
                          {"n_kv_heads", "3", "it must divide the number of heads, 4"},
                          {"n_kv_heads", "8", "it must divide the number of heads, 4"},
                          {"n_kv_heads", "-2", "1..65536"},
                          {"mlp_hidden_size", "0", "1..16777216"},
                          {"vocab_size", "0", "1..16777216"},
                          {"vocab_size", "4294967307", "1..16777216"},
                          {"embedding_size", "10", "must not be below vocab_size, 11"},
                          {"max_sequence_length", "0", "1..1073741824"},
                          {"max_sequence_length", "", "missing"},
                          {"rms_norm_eps", "0", "must be a number in"},
                          {"rms_norm_eps", "-1e-5", "must be a number in"},
                          {"rms_norm_eps", "1", "must be a number in"},
                          {"rms_norm_eps", "\"1e-5\"", "must be a number in"},
                          {"rope_theta", "0", "must be a number in"},
                          {"rope_theta", "1e300", "must be a number in"}});
}

TEST(CheckpointConfig, RejectsTokensOutsideTheVocabulary) {
  expect_config_rejected(tiny_llada(), {{"eos_token_id", "12", "in 0..11"},
                                        {"eos_token_id", "-1", "in 0..11"},
                                        {"eos_token_id", "[1,12]", "of each element"},
                                        {"eos_token_id", "[\"a\"]", "of each element"},
                                        {"eos_token_id", "\"2\"", "in 0..11"},
                                        {"bos_token_id", "12", "in 0..11"},
                                        {"pad_token_id", "-1", "in 0..11"},
                                        {"pad_token_id", "1.5", "in 0..11"},
                                        {"mask_token_id", "-1", "integer in 0.."},
                                        {"mask_token_id", "3.0", "integer in 0.."}});
}

TEST(CheckpointConfig, RejectsMaskTokenBeyondTheLogits) {
  const TempFolder folder;
  TinyModel model = tiny_llada();
  model.config["mask_token_id"] = "12";
  model.write(folder);
  expect_rejected([&] { load(folder.path()); }, folder.path("config.json"),
                  "the mask token id is 12 but the model's tokens are 0..11");
  EXPECT_EQ(load(folder.path(), mask(11))->info().mask_token_id, 11);
  EXPECT_THROW(load(folder.path(), mask(12)), InputError);
  EXPECT_THROW(load(folder.path(), mask(-1)), InputError);
}

TEST(CheckpointConfig, RejectsWhatIsNotComputed) {
  const std::string only = "tabes computes only ";
  expect_config_rejected(tiny_llada(), {{"alibi", "true", only + "false"},
                                        {"alibi", "\"yes\"", "must be true or false"},
                                        {"alibi", "0", "must be true or false"},
                                        {"rope", "false", only + "true"},
                                        {"rope_full_precision", "false", only + "true"},
                                        {"layer_norm_type", "\"low_precision\"", only + "\"rms\""},
                                        {"layer_norm_type", "7", "must be a string"},
                                        {"activation_type", "\"relu\"", only + "\"silu\""},
                                        {"block_type", "\"sequential\"", only + "\"llama\""},
                                        {"multi_query_attention", "true", only + "false"},
                                        {"input_emb_norm", "true", only + "false"},
                                        {"attention_layer_norm", "true", only + "false"},
                                        {"scale_logits", "true", only + "false"},
                                        {"include_bias", "true", only + "false"},
                                        {"bias_for_layer_norm", "true", only + "false"},
                                        {"layer_norm_with_affine", "false", only + "true"},
                                        {"clip_qkv", "8.0", "does not compute"},
                                        {"rope_scaling", "{\"type\":\"yarn\"}", "does not compute"},
                                        {"block_group_size", "2", "in 1..1"}});
  expect_config_rejected(tiny_bert(),
                         {{"hidden_act", "\"relu\"", only + "\"gelu\""},
                          {"position_embedding_type", "\"relative_key\"", only + "\"absolute\""},
                          {"is_decoder", "true", only + "false"},
                          {"add_cross_attention", "true", only + "false"},
                          {"pruned_heads", "{\"0\":[1]}", "does not compute"},
                          {"num_attention_heads", "3", "divide the hidden size"},
                          {"type_vocab_size", "-1", "0..65536"},
                          {"layer_norm_eps", "0", "must be a number"}});
}

TEST(CheckpointConfig, RejectsUnknownFamiliesAndRunsNoCode) {
  expect_config_rejected(
      tiny_llada(),
      {{"model_type", "\"gpt2\"", "tabes reads bert, llada; code from checkpoints is never run"},
       {"model_type", "\"\"", "tabes reads bert, llada"},
       {"model_type", "\"../llada\"", "tabes reads bert, llada"},
       {"model_type", "7", "must be a string"}});
}

TEST(CheckpointConfig, RejectsFilesThatAreNoConfig) {
  const TempFolder folder;
  tiny_llada().write(folder);
  const std::vector<std::pair<std::string, std::string>> cases = {
      {"", "invalid JSON"},
      {"{", "invalid JSON"},
      {"[]", "not a JSON object"},
      {"null", "not a JSON object"},
      {"\"llada\"", "not a JSON object"},
      {R"({"n_layers":1,"n_layers":2})", "\"n_layers\" is repeated"},
      {R"({"n_layers":1,"n\u005flayers":2})", "\"n_layers\" is repeated"},
      {R"({"a":{"b":1,"b":2}})", "\"b\" is repeated"},
      {std::string("{}\0{}", 5), "NUL byte"},
      {"\xef\xbb\xbf\xef\xbb\xbf{}", "byte order mark"},
      {std::string("\xff\xfe{\0}\0", 6), "is UTF-16"},
      {"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"},
      {"{\"a\":NaN}", "invalid JSON"},
      {"{\"a\":1e400}", "invalid JSON"},
      {"{\"a\":Infinity}", "invalid JSON"},
      {"{\"a\":\"\xff\"}", "invalid JSON"},
      {"{\"a\":" + std::string(50'000, '['), "nested deeper"},
      {"[" + std::string(2'000'002, '0') + "]", "number or run of spaces longer"},
      {std::string(17U << 20, ' '), "at most"}};
  for (const auto& [text, fragment] : cases) {
    const std::string path = folder.write("config.json", text);
    expect_rejected([&] { load(folder.path()); }, path, fragment);
  }
}

TEST(CheckpointConfig, ParsesLlada) {
  const Config config(to_json(tiny_llada().config), "config.json");
  const TransformerConfig c = checkpoint::llada_family().parse(config);
  EXPECT_EQ(c.family, "llada");
  EXPECT_EQ(c.vocab_size, 12);  // the table's rows, not vocab_size
  EXPECT_EQ(c.hidden_size, 8);
  EXPECT_EQ(c.num_layers, 2);
  EXPECT_EQ(c.num_heads, 4);
  EXPECT_EQ(c.num_kv_heads, 2);
  EXPECT_EQ(c.head_dim, 2);
  EXPECT_EQ(c.mlp_size, 16);
  EXPECT_EQ(c.max_length, 32);
  EXPECT_EQ(c.norm, Norm::rms);
  EXPECT_EQ(c.norm_placement, NormPlacement::pre);
  EXPECT_EQ(c.positions, Positions::rope);
  EXPECT_EQ(c.mlp, Mlp::swiglu);
  EXPECT_DOUBLE_EQ(c.rope_theta, 500000.0);
  EXPECT_DOUBLE_EQ(c.norm_eps, 1e-5);
  EXPECT_FALSE(c.head_tied || c.qkv_bias || c.mlp_bias || c.head_bias || c.logit_shift);
}

TEST(CheckpointConfig, ParsesLladaDefaults) {
  ConfigText text = tiny_llada().config;
  for (const char* key : {"n_kv_heads", "mlp_hidden_size", "embedding_size"}) text[key] = "null";
  text["mlp_ratio"] = "4";
  text["rope_theta"] = "10000";
  const TransformerConfig c =
      checkpoint::llada_family().parse(Config(to_json(text), "config.json"));
  EXPECT_EQ(c.num_kv_heads, 4);
  EXPECT_EQ(c.mlp_size, 32);
  EXPECT_EQ(c.vocab_size, 11);
  EXPECT_DOUBLE_EQ(c.rope_theta, 10000.0);
}

TEST(CheckpointConfig, ParsesBert) {
  ConfigText text = tiny_bert().config;
  TransformerConfig c = checkpoint::bert_family().parse(Config(to_json(text), "config.json"));
  EXPECT_EQ(c.norm, Norm::layer);
  EXPECT_EQ(c.norm_placement, NormPlacement::post);
  EXPECT_EQ(c.positions, Positions::learned);
  EXPECT_EQ(c.mlp, Mlp::gelu);
  EXPECT_EQ(c.token_types, 2);
  EXPECT_DOUBLE_EQ(c.norm_eps, 1e-12);
  EXPECT_TRUE(c.embedding_norm && c.head_transform && c.head_bias && c.head_tied);
  EXPECT_TRUE(c.qkv_bias && c.attention_out_bias && c.mlp_bias);
  EXPECT_FALSE(c.final_norm);
  text["tie_word_embeddings"] = "false";
  c = checkpoint::bert_family().parse(Config(to_json(text), "config.json"));
  EXPECT_FALSE(c.head_tied);
}

TEST(CheckpointConfig, MatchesPatterns) {
  using checkpoint::matches;
  EXPECT_TRUE(matches("bert.pooler.*", "bert.pooler.dense.weight"));
  EXPECT_TRUE(matches("*.position_ids", "bert.embeddings.position_ids"));
  EXPECT_TRUE(matches("a*b*c", "a.b.b.c") && matches("*", "") && matches("a", "a"));
  EXPECT_FALSE(matches("bert.pooler.*", "bert.poolers.x"));
  EXPECT_FALSE(matches("*.position_ids", "x.position_ids.y"));
  EXPECT_FALSE(matches("a*b*c", "a.c") || matches("", "a") || matches("a", ""));
}

}  // namespace
}  // namespace tabes::testing
