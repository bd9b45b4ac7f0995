// Which tokens the files of a checkpoint make special: mask, ends, padding, and what is no text.
#include <gtest/gtest.h>

#include <map>
#include <set>
#include <string>
#include <vector>

#include "checkpoint/families.h"
#include "checkpoint/tokenizer_files.h"
#include "checkpoint_models.h"
#include "tabes/checkpoint.h"

namespace tabes::testing {
namespace {

using Ids = std::vector<int64_t>;

LoadOptions mask(int64_t id) {
  LoadOptions options;
  options.mask_token_id = id;
  return options;
}

LoadOptions ends(Ids ids) {
  LoadOptions options;
  options.eos_token_ids = std::move(ids);
  return options;
}

ModelInfo info_of(const TempFolder& folder, const LoadOptions& options = {}) {
  return load(folder.path(), options)->info();
}

// A folder with a model of 12 tokens of which config.json says nothing.
class Llada : public ::testing::Test {
 protected:
  Llada() {
    model_ = tiny_llada();
    for (const char* key : {"mask_token_id", "eos_token_id", "bos_token_id", "pad_token_id"}) {
      model_.config.erase(key);
    }
    model_.write(folder_);
  }
  void config(const std::string& key, const std::string& value) {
    model_.config[key] = value;
    folder_.write("config.json", to_json(model_.config));
  }
  void tokenizer(const std::string& vocabulary, const std::string& added = "") {
    folder_.write("tokenizer.json",
                  R"({"added_tokens":[)" + added + R"(],"model":{"vocab":{)" + vocabulary + "}}}");
  }

  TempFolder folder_;
  TinyModel model_;
};

TEST(CheckpointTokens, AreReadFromVocabularies) {
  using checkpoint::parse_tokenizer;
  using checkpoint::parse_vocab_txt;
  const auto line = [](const std::string& text, const char* name = "[MASK]") {
    return parse_vocab_txt(text, "vocab.txt").find(name);
  };
  EXPECT_EQ(line("[PAD]\n[UNK]\n[MASK]\na\n"), 2);
  EXPECT_EQ(line("[PAD]\r\n[MASK]\r\n"), 1);
  EXPECT_EQ(line("[MASK]"), 0);
  EXPECT_EQ(line(" [MASK] \na"), 0);
  EXPECT_EQ(line("[MASK]\na\n[MASK]\n"), 2);  // as a Python dict made of the lines has it
  EXPECT_EQ(line(" \n\t\n", "\t"), 1);        // blanks may be tokens
  EXPECT_EQ(line("\n\n[MASK]x\n"), std::nullopt);
  EXPECT_EQ(line(""), std::nullopt);
  const auto token = [](const std::string& text, const char* name = "[MASK]") {
    return parse_tokenizer(text, "tokenizer.json").find(name);
  };
  EXPECT_EQ(token(R"({"added_tokens":[{"id":7,"content":"[MASK]"}]})"), 7);
  EXPECT_EQ(token(R"({"added_tokens":[{"content":"[MASK]","x":{"id":1},"id":7}]})"), 7);
  EXPECT_EQ(token(R"({"model":{"vocab":{"a":0,"[MASK]":5}}})"), 5);
  EXPECT_EQ(
      token(R"({"model":{"vocab":{"[MASK]":5}},"added_tokens":[{"id":7,"content":"[MASK]"}]})"), 7);
  EXPECT_EQ(token(R"({"model":{"vocab":{"":3}}})", ""), 3);
  EXPECT_EQ(token(R"({"model":{"vocab":[["a",-1.5],["[MASK]",0],["b",-2]]}})"), 1);
  EXPECT_EQ(token(R"({"model":{"vocab":[["a",-1.5]]}})"), std::nullopt);
  EXPECT_EQ(token(R"({"model":{"vocab":[["a","[MASK]"]]}})"), std::nullopt);
  EXPECT_EQ(token(R"({"model":{"merges":{"[MASK]":5}},"x":{"vocab":{"[MASK]":5}}})"), std::nullopt);
  EXPECT_EQ(token(R"({"added_tokens":null,"model":3})"), std::nullopt);
  EXPECT_EQ(token(R"([{"vocab":{"[MASK]":5}}])"), std::nullopt);
  EXPECT_EQ(token(R"({"added_tokens":[{"id":7},{"id":8,"content":"[MASK]"}]})"), 8);
  for (const char* bad :
       {R"({"model":{"vocab":{"[MASK]":-5}}})", R"({"model":{"vocab":{"[MASK]":"5"}}})",
        R"({"model":{"vocab":{"[MASK]":1.0}}})", R"({"model":{"vocab":{"[MASK]":null}}})",
        R"({"model":{"vocab":{"[MASK]":true}}})", R"({"model":{"vocab":{"[MASK]":[5]}}})",
        R"({"model":{"vocab":{"[MASK]":{}}}})", R"({"model":{"vocab":{"[MASK]":4294967296}}})",
        R"({"added_tokens":[{"id":1e3,"content":"[MASK]"}]})",
        R"({"added_tokens":[{"content":"[MASK]"}]})",
        R"({"added_tokens":[{"id":-1,"content":"[MASK]"}]})"}) {
    SCOPED_TRACE(bad);
    expect_rejected([&] { token(bad); }, "tokenizer.json", "the id of \"[MASK]\"");
  }
}

TEST(CheckpointTokens, SpecialOnesAreToldByTheirNames) {
  for (const char* name :
       {"[PAD]", "[UNK]",     "[CLS]",       "[SEP]",      "[MASK]",   "[BOS]",     "[EOS]",
        "<s>",   "</s>",      "<pad>",       "<unk>",      "<cls>",    "<eos>",     "<|pad|>",
        "<PAD>", "[unused0]", "[unused993]", "[unused_7]", "<null_1>", "<unused12>"}) {
    EXPECT_TRUE(names_special_token(name)) << name;
  }
  // Atoms and other text among them.
  for (const char* name : {"",          "[",          "[]",      "<>",   "[S]",  "[s]", "[Se]",
                           "[C@@H]",    "[unused]",   "pad",     "[PAD", "PAD]", "<a>", "[ENT]",
                           "[unusedx]", "[unused1x]", "[|pad|]", "<|>",  "<||>", ">>",  "[O-]"}) {
    EXPECT_FALSE(names_special_token(name)) << name;
  }
}

// case F10
TEST(CheckpointTokens, TheMaskIsSearchedFileAfterFile) {
  const TempFolder folder;
  TinyModel model = tiny_bert(/*old=*/true);
  model.write(folder);
  expect_rejected([&] { load(folder.path()); }, folder.path("config.json"), "pass mask_token_id");
  EXPECT_EQ(info_of(folder, mask(9)).mask_token_id, 9);
  folder.write("vocab.txt", "a\nb\n[MASK]\n");
  EXPECT_EQ(info_of(folder).mask_token_id, 2);
  folder.write("tokenizer.json", R"({"model":{"vocab":{"[MASK]":5,"<m>":8}}})");
  EXPECT_EQ(info_of(folder).mask_token_id, 5);
  folder.write("special_tokens_map.json", R"({"mask_token":"<m>"})");
  EXPECT_EQ(info_of(folder).mask_token_id, 8);
  folder.write("tokenizer_config.json", R"({"mask_token":{"content":"a"}})");
  EXPECT_EQ(info_of(folder).mask_token_id, 8);  // an older file, but it has the last word
  folder.write("tokenizer_config.json",
               R"({"mask_token":{"content":"b"},"added_tokens_decoder":{}})");
  EXPECT_EQ(info_of(folder).mask_token_id, 1);
  folder.write("tokenizer_config.json", R"({"mask_token":"nowhere","added_tokens_decoder":{}})");
  EXPECT_EQ(info_of(folder).mask_token_id, 5);
  folder.write("generation_config.json", R"({"mask_token_id":6})");
  EXPECT_EQ(info_of(folder).mask_token_id, 6);
  model.config["mask_token_id"] = "7";
  model.write(folder);
  EXPECT_EQ(info_of(folder).mask_token_id, 7);
  EXPECT_EQ(info_of(folder, mask(9)).mask_token_id, 9);
}

// case F10
TEST_F(Llada, AWordOfTheVocabularyIsNotTheMask) {
  tokenizer(R"("[MASK]":6,"a":1)", R"({"id":7,"content":"<|mdm_mask|>"})");
  EXPECT_EQ(info_of(folder_).mask_token_id, 7);
  folder_.write("generation_config.json", R"({"mask_token_id":8})");
  EXPECT_EQ(info_of(folder_).mask_token_id, 8);
}

TEST_F(Llada, RefusesAMaskTheModelLacks) {
  tokenizer("", R"({"id":12,"content":"<|mdm_mask|>"})");
  expect_rejected([&] { load(folder_.path()); }, folder_.path("tokenizer.json"),
                  "the mask token id is 12 but the model's tokens are 0..11: pass mask_token_id");
  config("mask_token_id", "3");
  folder_.write("generation_config.json", R"({"mask_token_id":99})");
  EXPECT_EQ(info_of(folder_).mask_token_id, 3);
}

// case F01
TEST_F(Llada, EndTokensAreAllThatAnyFileNames) {
  config("mask_token_id", "3");
  EXPECT_EQ(info_of(folder_).eos_token_ids, Ids{});
  folder_.write("generation_config.json", R"({"eos_token_id":4})");
  EXPECT_EQ(info_of(folder_).eos_token_ids, Ids{4});
  config("eos_token_id", "1");
  folder_.write("generation_config.json", R"({"eos_token_id":[1,4,4]})");
  EXPECT_EQ(info_of(folder_).eos_token_ids, (Ids{1, 4}));
  folder_.write("tokenizer_config.json", R"({"eos_token":{"content":"<e>"}})");
  EXPECT_EQ(info_of(folder_).eos_token_ids, (Ids{1, 4}));  // nothing gives it an id
  folder_.write("added_tokens.json", R"({"<e>":9})");
  EXPECT_EQ(info_of(folder_).eos_token_ids, (Ids{1, 4, 9}));
  tokenizer(R"("<e>":5)", R"({"id":6,"content":"<|eot_id|>"},{"id":1,"content":"<|endoftext|>"})");
  EXPECT_EQ(info_of(folder_).eos_token_ids, (Ids{1, 4, 5, 6}));
  config("eos_token_id", "[6, 1]");
  EXPECT_EQ(info_of(folder_).eos_token_ids, (Ids{6, 1, 4, 5}));
  for (const char* nothing : {"null", "[]"}) {
    config("eos_token_id", nothing);
    EXPECT_EQ(info_of(folder_).eos_token_ids, (Ids{1, 4, 5, 6})) << nothing;
  }
}

// case F01
TEST_F(Llada, EndTokensCanBeGiven) {
  config("mask_token_id", "3");
  config("eos_token_id", "99");  // which would be refused
  EXPECT_EQ(info_of(folder_, ends({5, 2, 5})).eos_token_ids, (Ids{5, 2}));
  EXPECT_EQ(info_of(folder_, ends({})).eos_token_ids, Ids{});
  for (const int64_t id : {-1, 12}) {
    EXPECT_THROW(load(folder_.path(), ends({2, id})), InputError) << id;
  }
}

// case F01
TEST_F(Llada, RefusesEndTokensTheModelLacks) {
  config("mask_token_id", "3");
  const std::string generation = folder_.path("generation_config.json");
  for (const char* bad : {"12", "[1,12]", "-1", "true", "\"<e>\"", "1.0", "[null]", "{}"}) {
    folder_.write("generation_config.json", R"({"eos_token_id":)" + std::string(bad) + "}");
    SCOPED_TRACE(bad);
    expect_rejected([&] { load(folder_.path()); }, generation, "\"eos_token_id\"");
    expect_rejected([&] { load(folder_.path()); }, generation, "0..11; or pass eos_token_ids");
  }
  folder_.write("generation_config.json", "{}");
  folder_.write("tokenizer_config.json", R"({"eos_token":"<e>"})");
  tokenizer(R"("<e>":12)");
  expect_rejected([&] { load(folder_.path()); }, folder_.path("tokenizer.json"),
                  "the end token id is 12 but the model's tokens are 0..11: pass eos_token_ids");
  // The family's own names are a help, not a statement: what the model lacks it cannot write.
  folder_.write("tokenizer_config.json", "{}");
  tokenizer("", R"({"id":12,"content":"<|eot_id|>"})");
  EXPECT_EQ(info_of(folder_).eos_token_ids, Ids{});
}

// case F01
TEST(CheckpointTokens, KnowsThoseOfLlada8BWithoutATokenizer) {
  TransformerConfig model;
  model.vocab_size = 126464;
  const checkpoint::Family& family = checkpoint::llada_family();
  EXPECT_EQ(family.usual_mask_token(model), 126336);
  EXPECT_EQ(family.usual_eos_tokens(model), (Ids{126081, 126348}));
  model.vocab_size = 126465;
  EXPECT_EQ(family.usual_mask_token(model), -1);
  EXPECT_EQ(family.usual_eos_tokens(model), Ids{});
}

// case F01
TEST(CheckpointTokens, BertEndsNowhereUnlessItSaysSo) {
  const TempFolder folder;
  TinyModel model = tiny_bert();
  model.write(folder);
  folder.write("vocab.txt", "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\nb\n[EOS]\n[unused1]\nc\n");
  EXPECT_EQ(info_of(folder).eos_token_ids, Ids{});
  EXPECT_EQ(info_of(folder).pad_token_id, 0);
  // A separator that is called the end as well stands between sentences, too.
  folder.write("tokenizer_config.json", R"({"eos_token":"[SEP]"})");
  EXPECT_EQ(info_of(folder).eos_token_ids, Ids{});
  folder.write("tokenizer_config.json", R"({"eos_token":"[EOS]"})");
  EXPECT_EQ(info_of(folder).eos_token_ids, Ids{7});
  model.config["eos_token_id"] = "3";
  model.write(folder);
  EXPECT_EQ(info_of(folder).eos_token_ids, (Ids{3, 7}));
}

// case N03
TEST(CheckpointTokens, WhatIsNoTextOfABertIsKnown) {
  const TempFolder folder;
  TinyModel model = tiny_bert();
  model.write(folder);
  EXPECT_EQ(info_of(folder).special_token_ids, Ids{});
  folder.write("vocab.txt",
               "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\n[S]\n[EOS]\n[unused1]\nb\n<s>\n");
  EXPECT_EQ(info_of(folder).special_token_ids, (Ids{0, 1, 2, 3, 7, 8}));
  // End tokens are written, and the mask never is.
  EXPECT_EQ(info_of(folder, ends({7, 3})).special_token_ids, (Ids{0, 1, 2, 8}));
  EXPECT_EQ(info_of(folder, mask(1)).special_token_ids, (Ids{0, 2, 3, 4, 7, 8}));
  // What the tokenizer itself leaves out of a text, be its name as it may.
  folder.write("added_tokens.json", R"({"a":5,"b":9})");
  EXPECT_EQ(info_of(folder).special_token_ids, (Ids{0, 1, 2, 3, 7, 8}));
  folder.write("special_tokens_map.json", R"({"additional_special_tokens":["b"],"x_token":"a"})");
  EXPECT_EQ(info_of(folder).special_token_ids, (Ids{0, 1, 2, 3, 5, 7, 8, 9}));
  // A tokenizer.json is the tokenizer; vocab.txt is then a file beside it.
  fs::remove(folder.path("added_tokens.json"));
  fs::remove(folder.path("special_tokens_map.json"));
  folder.write("tokenizer.json", R"({"model":{"vocab":{"[PAD]":2,"[unused1]":3,"a":0}},)"
                                 R"("added_tokens":[{"id":5,"content":"!","special":true},)"
                                 R"({"id":6,"content":"?","special":false}]})");
  EXPECT_EQ(info_of(folder).special_token_ids, (Ids{2, 3, 5}));
  const TempFolder other;
  tiny_llada().write(other);
  other.write("vocab.txt", "[PAD]\n[UNK]\n[CLS]\n[MASK]\n");
  EXPECT_EQ(info_of(other).special_token_ids, Ids{});
}

TEST(CheckpointTokens, SettingsAreThoseOfTransformers) {
  const TempFolder folder;
  EXPECT_TRUE(read_tokenizer_settings(folder.path()).named_tokens.empty());
  folder.write("tokenizer_config.json", R"({
    "bos_token": null, "add_bos_token": true, "eos_token": "</s>", "unk_token": "config",
    "mask_token": {"content": "<mask>", "lstrip": true, "__type": "AddedToken"},
    "do_lower_case": false, "strip_accents": null, "tokenizer_class": "BertTokenizer",
    "additional_special_tokens": ["<a>", {"content": "<b>"}, "<a>"],
    "model_max_length": 1000000000000000019884624838656,
    "chat_template": [{"name": "rag", "template": "r"}, {"name": "default", "template": "d"}]})");
  folder.write("special_tokens_map.json", R"({"unk_token": "map", "pad_token": "[PAD]"})");
  folder.write("added_tokens.json", R"({"[PAD]": 93, "covid19": 91})");
  const TokenizerSettings s = read_tokenizer_settings(folder.path() + "/");
  EXPECT_EQ(s.named_tokens, (std::map<std::string, std::string>{{"eos_token", "</s>"},
                                                                {"mask_token", "<mask>"},
                                                                {"pad_token", "[PAD]"},
                                                                {"unk_token", "map"}}));
  EXPECT_EQ(s.additional_special_tokens, (std::vector<std::string>{"<a>", "<b>"}));
  EXPECT_EQ(s.do_lower_case, false);
  EXPECT_EQ(s.strip_accents, std::nullopt);
  EXPECT_EQ(s.tokenizer_class, "BertTokenizer");
  EXPECT_EQ(s.chat_template, "d");
  ASSERT_EQ(s.added_tokens.size(), 2U);
  EXPECT_EQ(s.added_tokens[0].content, "covid19");
  EXPECT_FALSE(s.added_tokens[0].special);
  EXPECT_TRUE(s.added_tokens[0].normalized);
  EXPECT_EQ(s.added_tokens[1].id, 93);
  EXPECT_TRUE(s.added_tokens[1].special);
  EXPECT_FALSE(s.added_tokens[1].normalized);
  // With a decoder in it tokenizer_config.json is complete, and the older files are leftovers.
  folder.write("tokenizer_config.json", R"({"unk_token": "config", "added_tokens_decoder": {
    "95": {"content": "<x>", "special": true, "normalized": true, "rstrip": true},
    "94": {"content": "<y>", "single_word": true}}})");
  const TokenizerSettings complete = read_tokenizer_settings(folder.path());
  EXPECT_EQ(complete.named_tokens.at("unk_token"), "config");
  EXPECT_EQ(complete.named_tokens.at("pad_token"), "[PAD]");
  ASSERT_EQ(complete.added_tokens.size(), 2U);
  const AddedToken &y = complete.added_tokens[0], &x = complete.added_tokens[1];
  EXPECT_TRUE(y.id == 94 && y.content == "<y>" && y.single_word && y.normalized && !y.special);
  EXPECT_TRUE(x.id == 95 && x.special && x.normalized && x.rstrip && !x.lstrip);
}

TEST(CheckpointTokens, SettingsOfTheWrongKindAreNamed) {
  struct Case {
    const char *file, *text, *fragment;
  };
  const char* config = "tokenizer_config.json";
  const std::vector<Case> cases = {
      {config, "[]", "not a JSON object"},
      {config, R"({"mask_token":5})", "\"mask_token\" is 5: it must be a string"},
      {config, R"({"eos_token":{"content":1}})", "\"eos_token\" is an object"},
      {config, R"({"do_lower_case":"no"})",
       "\"do_lower_case\" is \"no\": it must be true or false"},
      {config, R"({"strip_accents":1})", "\"strip_accents\" is 1"},
      {config, R"({"tokenize_chinese_chars":[]})", "\"tokenize_chinese_chars\""},
      {config, R"({"tokenizer_class":1})", "\"tokenizer_class\""},
      {config, R"({"chat_template":1})", "\"chat_template\" is 1"},
      {config, R"({"chat_template":["x"]})", "\"chat_template\" is an array"},
      {config, R"({"chat_template":[{"name":"default","template":1}]})", "\"chat_template\""},
      {config, R"({"additional_special_tokens":"<a>"})", "\"additional_special_tokens\""},
      {config, R"({"additional_special_tokens":[1]})", "\"additional_special_tokens\""},
      {config, R"({"added_tokens_decoder":[]})", "\"added_tokens_decoder\" is an array"},
      {config, R"({"added_tokens_decoder":{"x":{"content":"a"}}})", "\"x\", which is no token id"},
      {config, R"({"added_tokens_decoder":{"-1":{"content":"a"}}})", "no token id"},
      {config, R"({"added_tokens_decoder":{"99999999999":{"content":"a"}}})", "no token id"},
      {config, R"({"added_tokens_decoder":{"5":{"id":1}}})", "5 has no \"content\""},
      {config, R"({"added_tokens_decoder":{"5":{"content":"a","special":1}}})", "\"special\" 1"},
      {config, R"({"added_tokens_decoder":{"5":{"content":"a"},"05":{"content":"b"}}})",
       "\"a\" and \"b\" have the same id, 5"},
      {"added_tokens.json", R"({"a":-1})", "\"a\" is -1"},
      {"added_tokens.json", R"({"a":"b"})", "\"a\" is \"b\""},
      {"added_tokens.json", R"({"a":7,"b":7})", "have the same id, 7"},
      {"special_tokens_map.json", R"({"pad_token":[]})", "\"pad_token\""},
  };
  for (const Case& c : cases) {
    SCOPED_TRACE(c.text);
    const TempFolder folder;
    const std::string path = folder.write(c.file, c.text);
    expect_rejected([&] { read_tokenizer_settings(folder.path()); }, path, c.fragment);
  }
  expect_rejected([&] { read_tokenizer_settings("/nowhere"); }, "/nowhere", "no such folder");
}

// case U5
TEST(CheckpointTokens, AByteOrderMarkChangesNothing) {
  const TempFolder folder;
  const std::string mark = "\xef\xbb\xbf";
  TinyModel model = tiny_bert();
  model.write(folder);
  model.config.erase("mask_token_id");
  folder.write("config.json", mark + to_json(model.config));
  folder.write("vocab.txt", mark + "[MASK]\n[PAD]\nx\n<e>\n");
  folder.write("generation_config.json", mark + R"({"eos_token_id":2})");
  folder.write("tokenizer_config.json", mark + R"({"eos_token":"<e>"})");
  folder.write("added_tokens.json", mark + R"({"<a>":5})");
  folder.write("special_tokens_map.json", mark + R"({"x_token":"<a>"})");
  const ModelInfo info = info_of(folder);
  EXPECT_EQ(info.mask_token_id, 0);
  EXPECT_EQ(info.eos_token_ids, (Ids{2, 3}));
  EXPECT_EQ(info.special_token_ids, (Ids{1, 5}));
  folder.write("tokenizer.json", mark + R"({"model":{"vocab":{"[MASK]":4}}})");
  EXPECT_EQ(info_of(folder).mask_token_id, 4);
}

}  // namespace
}  // namespace tabes::testing
