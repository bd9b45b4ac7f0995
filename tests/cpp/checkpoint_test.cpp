// From the files' bytes to the model's weights.
#include "tabes/checkpoint.h"

#include <ATen/Context.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/full.h>
#include <ATen/ops/zeros.h>
#include <c10/core/InferenceMode.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <stdexcept>
#include <string>
#include <vector>

#include "checkpoint/plan.h"
#include "checkpoint/tensor_read.h"
#include "checkpoint_models.h"
#include "model/device.h"

namespace tabes::testing {
namespace {

using checkpoint::read_into;
using checkpoint::SafetensorsFile;

at::Tensor ramp(at::IntArrayRef shape, float first = 0) {
  return at::arange(c10::multiply_integers(shape), at::kFloat).div(64.0).add(first).view(shape);
}

std::string stored_as(const at::Tensor& values, at::ScalarType dtype) {
  const at::Tensor t = values.to(dtype).contiguous();
  return std::string(static_cast<const char*>(t.const_data_ptr()), t.nbytes());
}

TEST(TensorRead, ConvertsBetweenFloatingDtypes) {
  const at::Tensor values = ramp({5, 7}, -0.25);
  const auto bytes = [&](at::ScalarType dtype) { return stored_as(values, dtype); };
  const TempFolder folder;
  const SafetensorsFile file(
      folder.write("m.safetensors", SafetensorsBuilder()
                                        .add("f64", "F64", {5, 7}, bytes(at::kDouble))
                                        .add("f32", "F32", {5, 7}, bytes(at::kFloat))
                                        .add("bf16", "BF16", {5, 7}, bytes(at::kBFloat16))
                                        .add("f16", "F16", {5, 7}, bytes(at::kHalf))
                                        .bytes()));
  const std::pair<const char*, at::ScalarType> sources[] = {
      {"f64", at::kDouble}, {"f32", at::kFloat}, {"bf16", at::kBFloat16}, {"f16", at::kHalf}};
  for (const auto& [name, from] : sources) {
    for (const at::ScalarType to : {at::kDouble, at::kFloat, at::kBFloat16, at::kHalf}) {
      const at::Tensor got = at::empty({5, 7}, to);
      read_into(file, *file.find(name), got);
      EXPECT_TRUE(at::equal(got, values.to(from).to(to))) << name << " to " << to;
    }
  }
}

TEST(TensorRead, FillsViewsAndNothingElse) {
  const TempFolder folder;
  const SafetensorsFile file(folder.write(
      "m.safetensors", SafetensorsBuilder()
                           .add_ramp("t", {4, 6})
                           .add("bf16", "BF16", {4, 6}, stored_as(ramp({4, 6}), at::kBFloat16))
                           .bytes()));
  for (const char* name : {"t", "bf16"}) {
    for (const at::ScalarType dtype : {at::kFloat, at::kDouble}) {
      const at::Tensor expected =
          ramp({4, 6}).to(name == std::string("t") ? at::kFloat : at::kBFloat16).to(dtype);
      const auto check = [&](const at::Tensor& whole, const at::Tensor& view) {
        const at::Tensor rest = whole.clone();
        read_into(file, *file.find(name), view);
        EXPECT_TRUE(at::equal(view, expected));
        view.fill_(-1);
        EXPECT_TRUE(at::equal(whole, rest));
      };
      const at::Tensor rows = at::full({12, 6}, -1, dtype);
      check(rows, rows.narrow(0, 4, 4));  // a part of a fused weight, contiguous
      const at::Tensor columns = at::full({4, 18}, -1, dtype);
      check(columns, columns.narrow(1, 6, 6));
      const at::Tensor transposed = at::full({6, 4}, -1, dtype);
      check(transposed, transposed.t());
    }
  }
}

TEST(TensorRead, ReadsLargeTensorsInPieces) {
  // More than one buffer of 32 MiB, with a last piece that is shorter.
  const int64_t rows = 5000, columns = 2500;
  const TempFolder folder;
  const SafetensorsFile file(
      folder.write("m.safetensors", SafetensorsBuilder().add_ramp("t", {rows, columns}).bytes()));
  const at::Tensor got = at::empty({rows, columns}, at::kDouble);
  read_into(file, file.tensors()[0], got);
  EXPECT_TRUE(at::equal(got, ramp({rows, columns}).to(at::kDouble)));
}

TEST(TensorRead, ReadsScalarsAndEmptyTensors) {
  const TempFolder folder;
  const SafetensorsFile file(folder.write(
      "m.safetensors",
      SafetensorsBuilder().add_ramp("scalar", {}, 7).add("empty", "F32", {0, 3}, "").bytes()));
  for (const at::ScalarType dtype : {at::kFloat, at::kDouble}) {
    const at::Tensor scalar = at::empty({}, dtype);
    read_into(file, *file.find("scalar"), scalar);
    EXPECT_EQ(scalar.item<double>(), 7);
    read_into(file, *file.find("empty"), at::empty({0, 3}, dtype));
  }
}

TEST(TensorRead, RejectsWhatCannotBeConverted) {
  const TempFolder folder;
  const std::string path = folder.write("m.safetensors", SafetensorsBuilder()
                                                             .add("int", "I8", {2}, "ab")
                                                             .add("f8", "F8_E4M3", {2}, "ab")
                                                             .add("bool", "BOOL", {2}, "\x01\x02")
                                                             .bytes());
  const SafetensorsFile file(path);
  const auto read = [&](const char* name, at::ScalarType dtype, int64_t size = 2) {
    return
        [&file, name, dtype, size] { read_into(file, *file.find(name), at::empty({size}, dtype)); };
  };
  expect_rejected(read("int", at::kFloat), path, "quantised");
  expect_rejected(read("int", at::kLong), path, "\"int\"");
  expect_rejected(read("f8", at::kFloat), path, "F8_E4M3");
  expect_rejected(read("bool", at::kBool), path, "booleans other than 0 and 1");
  expect_rejected(read("int", at::kChar, 3), path, "shape [2], not [3]");
  EXPECT_NO_THROW(read("int", at::kChar)());
}

TEST(Checkpoint, LoadsEveryTensorOnce) {
  for (const TinyModel& model : {tiny_llada(), tiny_bert(), tiny_bert(/*old=*/true)}) {
    const TempFolder folder;
    model.write(folder);
    int64_t calls = 0, last = 0, all = 0, parameters = 0;
    LoadOptions options;
    options.mask_token_id = 3;
    options.progress = [&](int64_t done, int64_t total) {
      ++calls;
      EXPECT_GT(done, last);
      last = done;
      all = total;
    };
    const auto loaded = load(folder.path(), options);
    for (const Weight& weight : model.weights) {
      parameters += c10::multiply_integers(weight.shape);
    }
    EXPECT_EQ(calls, static_cast<int64_t>(model.weights.size()));
    EXPECT_EQ(last, all);
    EXPECT_EQ(all, 4 * parameters);
    EXPECT_TRUE(at::equal(loaded->embedding_table(), ramp(model.weights[0].shape)));
  }
}

TEST(Checkpoint, LoadsShards) {
  const TinyModel model = tiny_llada();
  const TempFolder folder;
  folder.write("config.json", to_json(model.config));
  std::string map;
  for (size_t shard = 0; shard < 3; ++shard) {
    const std::string name = "model-0000" + std::to_string(shard + 1) + "-of-00003.safetensors";
    folder.write(name, model.weights_file([&](size_t i) { return i % 3 == shard; }));
    for (size_t i = shard; i < model.weights.size(); i += 3) {
      map += (map.empty() ? "\"" : ",\"") + model.weights[i].name + "\":\"" + name + "\"";
    }
  }
  folder.write("model.safetensors.index.json", "{\"weight_map\":{" + map + "}}");
  const TempFolder whole;
  model.write(whole);
  const auto a = load(folder.path()), b = load(whole.path());
  EXPECT_EQ(a->info().parameters, b->info().parameters);
  EXPECT_TRUE(at::equal(a->embedding_table(), b->embedding_table()));
}

TEST(Checkpoint, ProgressMayStopIt) {
  const TempFolder folder;
  tiny_llada().write(folder);
  LoadOptions options;
  options.progress = [](int64_t, int64_t) { throw std::domain_error("stop"); };
  EXPECT_THROW(load(folder.path(), options), std::domain_error);
}

TEST(Checkpoint, RejectsOtherTensorsThanTheConfigAsksFor) {
  const TempFolder folder;
  const std::string path = folder.path("model.safetensors");
  const auto expect = [&](const TinyModel& model, const std::string& fragment) {
    model.write(folder);
    expect_rejected([&] { load(folder.path()); }, path, fragment);
  };
  TinyModel model = tiny_llada();
  model.config["n_layers"] = "3";
  expect(model, "\"model.transformer.blocks.2.attn_norm.weight\" that config.json asks for");
  model.config["n_layers"] = "1";
  expect(model, "holds 9 tensors that a model of this config.json does not use");
  model = tiny_llada();
  model.config["n_kv_heads"] = "4";
  expect(model, "has shape [4, 8] where config.json asks for [8, 8]");
  model = tiny_llada();
  model.config["include_qkv_bias"] = "true";
  expect(model, "q_proj.bias\" that config.json asks for is missing");
  model = tiny_llada();
  model.weights.push_back({"model.transformer.blocks.0.q_norm.weight", {2}});
  expect(model,
         "holds 1 tensors that a model of this config.json does not use: "
         "\"model.transformer.blocks.0.q_norm.weight\". Another architecture?");
  model = tiny_bert();
  model.weights.pop_back();
  expect(model, "\"cls.predictions.bias\" that config.json asks for is missing");
  model = tiny_llada();
  model.config["model_type"] = "\"bert\"";
  model.config["architectures"] = "[]";
  model.write(folder);
  expect_rejected([&] { load(folder.path()); }, folder.path("config.json"),
                  "\"hidden_size\" is missing");
}

TEST(Checkpoint, IgnoresTensorsWithoutAPartInTheLogits) {
  const TempFolder folder;
  TinyModel model = tiny_bert();
  model.weights.insert(model.weights.end(), {{"bert.pooler.dense.weight", {8, 8}},
                                             {"bert.pooler.dense.bias", {8}},
                                             {"cls.seq_relationship.weight", {2, 8}},
                                             {"bert.embeddings.position_ids", {1, 20}}});
  model.write(folder);
  std::vector<std::string> notices;
  LoadOptions options;
  options.notice = [&](const std::string& line) { notices.push_back(line); };
  load(folder.path(), options);
  ASSERT_EQ(notices.size(), 1U);  // heads have weights, buffers have none
  EXPECT_NE(notices[0].find("left out: bert.pooler.dense.*, cls.seq_relationship.*"),
            std::string::npos)
      << notices[0];
  tiny_bert().write(folder);
  load(folder.path(), options);
  EXPECT_EQ(notices.size(), 1U);
}

TEST(Checkpoint, CopiesOfTiedWeightsMustBeCopies) {
  const TempFolder folder;
  TinyModel model = tiny_bert();
  folder.write("config.json", to_json(model.config));
  const auto write = [&](float first) {
    SafetensorsBuilder file;
    for (size_t i = 0; i < model.weights.size(); ++i) {
      file.add_ramp(model.weights[i].name, model.weights[i].shape, static_cast<float>(i));
    }
    file.add_ramp("cls.predictions.decoder.weight", {10, 8}, first);
    folder.write("model.safetensors", file.bytes());
  };
  write(0);
  EXPECT_NO_THROW(load(folder.path()));
  write(1);
  expect_rejected([&] { load(folder.path()); }, folder.path("model.safetensors"),
                  "\"cls.predictions.decoder.weight\" differs from");
  model.config["tie_word_embeddings"] = "false";
  folder.write("config.json", to_json(model.config));
  EXPECT_NO_THROW(load(folder.path()));
}

TEST(Checkpoint, TellsTheFamilyFromTheTensorsIfNothingElseDoes) {
  const TempFolder folder;
  TinyModel model = tiny_llada();
  model.config.erase("model_type");
  model.write(folder);
  EXPECT_EQ(load(folder.path())->info().family, "llada");
  model.config.erase("architectures");
  model.write(folder);
  EXPECT_EQ(load(folder.path())->info().family, "llada");
  model.weights[0].name = "other";
  model.weights[7].name = "another";
  model.write(folder);
  expect_rejected([&] { load(folder.path()); }, folder.path("config.json"), "tabes reads bert");
}

TEST(Checkpoint, IgnoresTheCallersInferenceMode) {
  const TempFolder folder;
  tiny_llada().write(folder);
  const c10::InferenceMode inference(true);
  EXPECT_FALSE(load(folder.path())->embedding_table().is_inference());
}

TEST(Checkpoint, SaysWhatCudaLacks) {
  const auto has = [](const std::string& why, const char* part) {
    return why.find(part) != std::string::npos;
  };
  EXPECT_EQ(why_no_cuda(true, true), "");
  // A build for the CPU beside a PyTorch that does see a GPU: not PyTorch's fault.
  EXPECT_TRUE(has(why_no_cuda(false, true), "rebuild it with -DTABES_CUDA=ON"));
  EXPECT_FALSE(has(why_no_cuda(false, true), "sees no"));
  EXPECT_TRUE(has(why_no_cuda(true, false), "CUDA_VISIBLE_DEVICES"));
  EXPECT_FALSE(has(why_no_cuda(true, false), "rebuild"));
  EXPECT_TRUE(has(why_no_cuda(false, false), "rebuild it with -DTABES_CUDA=ON"));
  EXPECT_TRUE(has(why_no_cuda(false, false), "sees no"));
}

#ifndef TABES_HAS_CUDA
TEST(Checkpoint, NeedsACudaBuildForCuda) {
  const TempFolder folder;
  tiny_llada().write(folder);
  LoadOptions options;
  options.device = at::Device(at::kCUDA, 0);
  try {
    load(folder.path(), options);
    ADD_FAILURE();
  } catch (const DeviceError& error) {
    EXPECT_NE(std::string(error.what()).find("TABES_CUDA=ON"), std::string::npos);
  }
}
#endif

}  // namespace
}  // namespace tabes::testing
