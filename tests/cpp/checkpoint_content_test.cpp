// What the files of a checkpoint may hold beside a model's own tensors, what they may call them,
// which numbers are weights, and how messages quote bytes.
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/equal.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "checkpoint/checks.h"
#include "checkpoint/tensor_read.h"
#include "checkpoint_models.h"
#include "tabes/checkpoint.h"

namespace tabes::testing {
namespace {

using checkpoint::printable;
using checkpoint::quote;
using checkpoint::SafetensorsFile;

LoadOptions ignore(std::vector<std::string> patterns) {
  LoadOptions options;
  options.ignore = std::move(patterns);
  return options;
}

void expect_input_error(const std::string& folder, const LoadOptions& options,
                        const std::string& fragment) {
  try {
    load(folder, options);
    ADD_FAILURE() << "accepted";
  } catch (const InputError& error) {
    EXPECT_NE(std::string(error.what()).find(fragment), std::string::npos) << error.what();
  }
}

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
constexpr float kInfinity = std::numeric_limits<float>::infinity();

// Writes `model` with `value` at the first element but `at` of tensor `name`.
std::string write_with(const TempFolder& folder, const TinyModel& model, const std::string& name,
                       size_t at, float value) {
  folder.write("config.json", to_json(model.config));
  SafetensorsBuilder file;
  for (const Weight& weight : model.weights) {
    const auto count = static_cast<size_t>(c10::multiply_integers(weight.shape));
    std::vector<float> values(count, 0.25F);
    if (weight.name == name) values.at(at) = value;
    file.add(weight.name, "F32", weight.shape, bytes_of(values));
  }
  return folder.write("model.safetensors", file.bytes());
}

// case F12
TEST(CheckpointContent, NoWeightIsNaN) {
  const TempFolder folder;
  for (const TinyModel& model : {tiny_bert(), tiny_llada()}) {
    for (const Weight& weight : model.weights) {
      for (const float bad : {kNaN, -kNaN, kInfinity}) {
        SCOPED_TRACE(weight.name);
        const auto count = static_cast<size_t>(c10::multiply_integers(weight.shape));
        const std::string path = write_with(folder, model, weight.name, count - 1, bad);
        const std::string last = weight.shape.size() == 1
                                     ? "[" + std::to_string(weight.shape[0] - 1) + "]"
                                     : "[" + std::to_string(weight.shape[0] - 1) + ", " +
                                           std::to_string(weight.shape[1] - 1) + "]";
        expect_rejected([&] { load(folder.path()); }, path, "\"" + weight.name + "\" is ");
        expect_rejected([&] { load(folder.path()); }, path, " at " + last);
      }
    }
  }
}

// case F12
TEST(CheckpointContent, TheFirstNaNIsNamed) {
  const TempFolder folder;
  std::vector<float> values(35, 1.0F);
  values[17] = values[18] = kNaN;
  const std::string path = folder.write(
      "m.safetensors", SafetensorsBuilder().add("t", "F32", {5, 7}, bytes_of(values)).bytes());
  const SafetensorsFile file(path);
  for (const at::ScalarType dtype : {at::kFloat, at::kDouble, at::kBFloat16, at::kHalf}) {
    expect_rejected([&] { checkpoint::read_into(file, *file.find("t"), at::empty({5, 7}, dtype)); },
                    path, "tensor \"t\" is NaN at [2, 3]");
  }
}

// case F12
TEST(CheckpointContent, NaNIsFoundInEveryDtype) {
  struct Case {
    const char* dtype;
    std::string nan, infinity, finite;
  };
  const auto bits = [](uint64_t value, size_t size) {
    return std::string(reinterpret_cast<const char*>(&value), size);
  };
  const std::vector<Case> cases = {
      {"F16", bits(0x7c01, 2), bits(0xfc00, 2), bits(0x7bff, 2)},
      {"BF16", bits(0xff81, 2), bits(0x7f80, 2), bits(0x7f7f, 2)},
      {"F32", bits(0x7f800001, 4), bits(0xff800000, 4), bits(0x7f7fffff, 4)},
      {"F64", bits(0xfff0000000000001, 8), bits(0x7ff0000000000000, 8),
       bits(0x7fefffffffffffff, 8)}};
  const TempFolder folder;
  for (const Case& c : cases) {
    SCOPED_TRACE(c.dtype);
    const std::string path = folder.write("m.safetensors", SafetensorsBuilder()
                                                               .add("nan", c.dtype, {}, c.nan)
                                                               .add("inf", c.dtype, {1}, c.infinity)
                                                               .add("max", c.dtype, {1}, c.finite)
                                                               .bytes());
    const SafetensorsFile file(path);
    const auto read = [&](const char* name, at::IntArrayRef shape) {
      return [&file, name, shape] {
        checkpoint::read_into(file, *file.find(name), at::empty(shape, at::kDouble));
      };
    };
    expect_rejected(read("nan", {}), path, "\"nan\" is NaN at []");
    expect_rejected(read("inf", {1}), path, "inf at [0]");
    EXPECT_NO_THROW(read("max", {1})());
  }
}

// case F12
TEST(CheckpointContent, ATokenMayBeRuledOutByTheHeadsBias) {
  const TempFolder folder;
  write_with(folder, tiny_bert(), "cls.predictions.bias", 7, -kInfinity);
  const auto model = load(folder.path());
  const at::Tensor table = model->embedding_table();
  EXPECT_EQ(table.size(0), 10);
  write_with(folder, tiny_bert(), "cls.predictions.bias", 7, kInfinity);
  EXPECT_THROW(load(folder.path()), CheckpointError);
  write_with(folder, tiny_bert(), "cls.predictions.transform.dense.bias", 7, -kInfinity);
  EXPECT_THROW(load(folder.path()), CheckpointError);
}

TEST(CheckpointContent, WhatIsTooLargeForTheDtypeIsNamed) {
  const TempFolder folder;
  const std::string path = folder.write(
      "m.safetensors", SafetensorsBuilder()
                           .add("fits", "F32", {2}, bytes_of<float>({65519.0F, -65519.0F}))
                           .add("not", "F32", {2}, bytes_of<float>({65519.0F, -65520.0F}))
                           .bytes());
  const SafetensorsFile file(path);
  const auto read = [&](const char* name, at::ScalarType dtype) {
    const at::Tensor to = at::empty({2}, dtype);
    checkpoint::read_into(file, *file.find(name), to);
    return to;
  };
  EXPECT_EQ(read("fits", at::kHalf)[1].item<float>(), -65504.0F);
  expect_rejected([&] { read("not", at::kHalf); }, path,
                  "\"not\" is -65520 at [1], too large for Half: load it in bfloat16 or float32");
  EXPECT_EQ(read("not", at::kFloat)[1].item<float>(), -65520.0F);
}

// case U1
TEST(CheckpointContent, APrefixOfAllNamesIsPassedOver) {
  for (const TinyModel& plain : {tiny_bert(), tiny_llada()}) {
    const TempFolder whole;
    plain.write(whole);
    const at::Tensor table = load(whole.path())->embedding_table();
    for (const std::string prefix : {"module.", "_orig_mod.", "model.", "module._orig_mod.",
                                     "_orig_mod.module.model.", "net."}) {
      SCOPED_TRACE(prefix);
      const TempFolder folder;
      TinyModel model = plain;
      for (Weight& weight : model.weights) weight.name = prefix + weight.name;
      model.write(folder);
      EXPECT_TRUE(at::equal(load(folder.path())->embedding_table(), table));
      // Only the tensors tell the family.
      model.config.erase("model_type");
      model.config.erase("architectures");
      model.write(folder);
      EXPECT_NO_THROW(load(folder.path()));
      // One name without it, and the first that is missed is named as it is.
      model.weights.push_back({"other.weight", {2}});
      model.config = plain.config;
      model.write(folder);
      expect_rejected([&] { load(folder.path()); }, folder.path("model.safetensors"),
                      "there is \"" + model.weights[0].name +
                          "\", but not all names start alike: \"other.weight\" does not");
      expect_rejected([&] { load(folder.path()); }, folder.path("model.safetensors"),
                      "leave it out: ignore=[\"other.weight\"]");
      EXPECT_TRUE(at::equal(load(folder.path(), ignore({"other.*"}))->embedding_table(), table));
    }
  }
}

// case U2
TEST(CheckpointContent, OtherHeadsAreLeftOutOnRequest) {
  const TempFolder folder;
  TinyModel model = tiny_bert();
  for (const char* head : {"species", "chain", "graft"}) {
    model.weights.push_back({"cls." + std::string(head) + ".weight", {2, 8}});
    model.weights.push_back({"cls." + std::string(head) + ".bias", {2}});
  }
  model.write(folder);
  expect_rejected([&] { load(folder.path()); }, folder.path("model.safetensors"),
                  "holds 6 tensors that a model of this config.json does not use: "
                  "\"cls.chain.bias\", \"cls.chain.weight\"");
  expect_rejected([&] { load(folder.path()); }, folder.path("model.safetensors"),
                  "ignore=[\"cls.chain.*\", \"cls.graft.*\", \"cls.species.*\"]");
  EXPECT_NO_THROW(load(folder.path(), ignore({"cls.chain.*", "cls.graft.*", "cls.species.*"})));
  EXPECT_NO_THROW(load(folder.path(),
                       ignore({"cls.c*n.weight", "cls.chain.bias", "*.graft.*", "cls.species.*"})));
  expect_rejected([&] { load(folder.path(), ignore({"cls.chain.*"})); },
                  folder.path("model.safetensors"), "holds 4 tensors");
  expect_input_error(folder.path(), ignore({"cls.nothing.*"}), "name like \"cls.nothing.*\"");
  expect_input_error(folder.path(), ignore({""}), "name like \"\"");
  expect_input_error(folder.path(), ignore({"cls.*"}), "\"cls.*\" leaves out \"cls.predictions");
  expect_input_error(folder.path(), ignore({"*"}), "\"*\" leaves out");
}

// case U6
TEST(CheckpointContent, OtherArchitecturesAreRefusedByName) {
  const TempFolder folder;
  TinyModel model = tiny_llada();
  for (const char* type : {"roberta", "esm", "modernbert", "Dream"}) {
    model.config["model_type"] = "\"" + std::string(type) + "\"";
    model.write(folder);
    expect_rejected([&] { load(folder.path()); }, folder.path("config.json"), "tabes.wrap");
  }
  model = tiny_llada();
  model.config["architectures"] = "[\"LLaDAMoEModelLM\"]";
  model.config.erase("d_model");
  model.write(folder);
  expect_rejected([&] { load(folder.path()); }, folder.path("config.json"),
                  "it names \"LLaDAMoEModelLM\", but of this model_type tabes reads LLaDAModelLM");
  model = tiny_bert();
  model.config["architectures"] = "[\"BertForSequenceClassification\"]";
  EXPECT_EQ(model.weights.back().name, "cls.predictions.bias");
  model.weights.back() = {"classifier.bias", {2}};
  model.write(folder);
  expect_rejected([&] { load(folder.path()); }, folder.path("config.json"),
                  "\"BertForSequenceClassification\"");
  expect_rejected([&] { load(folder.path()); }, folder.path("config.json"),
                  "\"cls.predictions.bias\" that config.json asks for is missing");
  // A name nobody knows is no reason to refuse a model that is there.
  model = tiny_bert();
  model.config["architectures"] = "[\"AntiBERTy\"]";
  model.write(folder);
  EXPECT_NO_THROW(load(folder.path()));
}

// case U5
TEST(CheckpointContent, NumberedShardsNeedNoIndex) {
  const TinyModel model = tiny_llada();
  const TempFolder whole, folder;
  model.write(whole);
  folder.write("config.json", to_json(model.config));
  const auto shard = [](size_t i, const char* count) {
    return "model-0000" + std::to_string(i) + "-of-" + count + ".safetensors";
  };
  folder.write(shard(1, "00002"), model.weights_file([](size_t i) { return i % 2 == 0; }));
  expect_rejected([&] { load(folder.path()); }, folder.path(),
                  "the shard \"model-00002-of-00002.safetensors\" is missing");
  folder.write(shard(2, "00002"), model.weights_file([](size_t i) { return i % 2 == 1; }));
  EXPECT_TRUE(
      at::equal(load(folder.path())->embedding_table(), load(whole.path())->embedding_table()));
  folder.write(shard(1, "00003"), "");
  expect_rejected([&] { load(folder.path()); }, folder.path(), "no model.safetensors.index.json");
  const TempFolder strange;
  strange.write("config.json", to_json(model.config));
  strange.write("model-00001-of-99999.safetensors", "");
  expect_rejected([&] { load(strange.path()); }, strange.path(), "99999");
}

// case U5
TEST(CheckpointContent, TheRootOfAHubRepositoryIsResolved) {
  const TempFolder root;
  const TinyModel model = tiny_llada();
  const auto snapshot = [&](const std::string& revision) {
    fs::create_directories(root.path("snapshots/" + revision));
    fs::create_directories(root.path("refs"));
    root.write("snapshots/" + revision + "/config.json", to_json(model.config));
    root.write("snapshots/" + revision + "/model.safetensors",
               model.weights_file([](size_t) { return true; }));
  };
  snapshot("abc");
  EXPECT_EQ(checkpoint_folder(root.path() + "//"), root.path("snapshots/abc"));
  EXPECT_NO_THROW(load(root.path()));
  snapshot("def");
  expect_rejected([&] { load(root.path()); }, root.path(), "2 snapshots: pass one of them");
  root.write("refs/main", "def\n");
  EXPECT_EQ(checkpoint_folder(root.path()), root.path("snapshots/def"));
  EXPECT_EQ(checkpoint_folder(root.path("snapshots/abc")), root.path("snapshots/abc"));
  EXPECT_EQ(checkpoint_folder(root.path("snapshots/")), root.path("snapshots/def"));
  for (const char* bad : {"../../etc", "..", "", "a\x1b[m"}) {
    root.write("refs/main", bad);
    expect_rejected([&] { load(root.path()); }, root.path("refs/main"), "names no snapshot");
  }
  root.write("refs/main", "gone");
  expect_rejected([&] { load(root.path()); }, root.path("snapshots/gone"), "no such folder");
}

// case R14
TEST(CheckpointContent, MessagesAreValidText) {
  const std::vector<std::pair<std::string, std::string>> cases = {
      {"a \xc3\xa9 \xe4\xb8\xad \xf0\x9f\x98\x80", "a \xc3\xa9 \xe4\xb8\xad \xf0\x9f\x98\x80"},
      {"\xff", "\\xff"},
      {"a\xffz", "a\\xffz"},
      {"\xc3", "\\xc3"},
      {"\xc3(", "\\xc3("},
      {"\xc0\xaf", "\\xc0\\xaf"},                    // too long a form of /
      {"\xe0\x80\xaf", "\\xe0\\x80\\xaf"},           // and another
      {"\xed\xa0\x80", "\\xed\\xa0\\x80"},           // a surrogate
      {"\xf4\x90\x80\x80", "\\xf4\\x90\\x80\\x80"},  // beyond Unicode
      {"\xf0\x9f\x98", "\\xf0\\x9f\\x98"},
      {"\x1b[31m\n\x7f", "\\x1b[31m\\x0a\\x7f"},
      {"\xc2\x9b"
       "31m",
       "\\xc2\\x9b"
       "31m"},  // a control character of Latin 1
      {std::string("\0", 1), "\\x00"},
      {"", ""}};
  for (const auto& [bytes, shown] : cases) {
    EXPECT_EQ(printable(bytes), shown);
    EXPECT_EQ(printable(shown), shown);
    EXPECT_EQ(quote(bytes), "\"" + shown + "\"");
  }
  // Long text is cut between characters.
  EXPECT_EQ(quote(std::string(119, 'a') + "\xc3\xa9"), "\"" + std::string(119, 'a') + "\"...");
  EXPECT_EQ(quote(std::string(118, 'a') + "\xc3\xa9"), "\"" + std::string(118, 'a') + "\xc3\xa9\"");
  const TempFolder folder;
  const std::string path =
      folder.write("m\xff.safetensors", std::string("\1\0\0\0\0\0\0\0\xff", 9));
  expect_rejected([&] { SafetensorsFile file(path); }, "m\\xff.safetensors: invalid JSON", "");
}

}  // namespace
}  // namespace tabes::testing
