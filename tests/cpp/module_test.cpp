// TorchScript modules and functions as denoisers, against the native adjoint and differences.
#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <torch/csrc/jit/api/module.h>

#include <filesystem>

#include "batch/rows.h"
#include "plain_dispatch.h"
#include "tabes/error.h"
#include "tabes/generate.h"
#include "tabes/influence.h"
#include "tabes/module_denoiser.h"

namespace tabes {
namespace {

constexpr int64_t kVocab = 11, kWidth = 6, kMask = 2;

ModelInfo info_of(bool shift = false) {
  ModelInfo info;
  info.mask_token_id = kMask;
  info.max_length = 16;
  info.logit_shift = shift;
  return info;
}

// Mixes rows by attention without weights, then projects: enough to depend on every row.
torch::jit::Module script(const at::Tensor& out) {
  torch::jit::Module module("mixer");
  module.register_parameter("out", out, /*is_buffer=*/false);
  module.define(R"JIT(
def forward(self, inputs_embeds):
    scores = torch.matmul(inputs_embeds, inputs_embeds.transpose(1, 2))
    mixed = torch.matmul(torch.softmax(scores, -1), torch.tanh(inputs_embeds))
    return torch.matmul(inputs_embeds + mixed, self.out)
)JIT");
  return module;
}

class Module : public testing::Test {
 protected:
  void SetUp() override {
    at::manual_seed(4);
    table = at::randn({kVocab, kWidth}, at::kDouble);
    out = at::randn({kWidth, kVocab}, at::kDouble).set_requires_grad(true);
    // Two sequences of one length around a shorter one.
    batch.tokens = at::randint(3, kVocab, {19}, at::kLong);
    for (int64_t row : {1, 3, 4, 8, 10, 12, 14, 17}) batch.tokens[row] = kMask;
    batch.cu_seqlens = {0, 7, 12, 19};
    candidates = row_set({1, 4, 8, 17}, {0, 2, 3, 4}, at::kCPU);
    probes = row_set({3, 10, 12, 14}, {0, 1, 2, 4}, at::kCPU);
    active = row_set({1, 3, 4, 8, 10, 12, 14, 17}, {0, 3, 5, 8}, at::kCPU);
    offset = at::randn({4, kWidth}, at::kDouble) * 0.3;
    forbidden = at::tensor({kMask, int64_t{5}}, at::kLong);
  }
  EntropyGradient ask(const Denoiser& model, const at::Tensor& at_offset) {
    return model.entropy_gradient(
        {batch, active, candidates, probes, at_offset, {}, forbidden, nullptr, {}});
  }
  void expect_derivative(const Denoiser& model) {
    const EntropyGradient g = ask(model, offset);
    const at::Tensor d = at::randn_like(offset);
    const double h = 1e-4;
    const auto f = [&](double t) {
      return ask(model, offset + d * t).entropy.sum().item<double>();
    };
    const double wanted = (8 * (f(h) - f(-h)) - (f(2 * h) - f(-2 * h))) / (12 * h);
    EXPECT_NEAR((g.gradient * d).sum().item<double>(), wanted, 1e-8 * (1 + std::abs(wanted)));
    EXPECT_EQ(g.cost.forward_rows, 19);
    EXPECT_EQ(g.cost.backward_rows, 19);
    EXPECT_EQ(g.cost.head_rows, 19);
  }

  at::Tensor table, out, offset, forbidden;
  PackedBatch batch;
  RowSet candidates, probes, active;
};

TEST_F(Module, ScriptGradientIsTheDerivative) {
  for (bool shift : {false, true}) {
    const auto model = make_module(script(out), table, info_of(shift));
    expect_derivative(*model);
    const PlainDispatch plain;  // as the library calls it
    expect_derivative(*model);
    const c10::InferenceMode inference;
    expect_derivative(*model);
  }
  EXPECT_FALSE(out.grad().defined());
}

TEST_F(Module, FileAndModuleAgree) {
  const auto path = std::filesystem::temp_directory_path() / "tabes_module_test.pt";
  script(out).save(path.string());
  const auto loaded = load_module(path.string(), table, info_of());
  std::filesystem::remove(path);
  const auto made = make_module(script(out), table, info_of());
  EXPECT_EQ(loaded->info().parameters, kWidth * kVocab);
  EXPECT_EQ(loaded->info().family, "torchscript");
  const std::vector<at::Tensor> canvas{at::tensor({4, 2, 2, 7, 2, 2}, at::kLong)};
  EXPECT_TRUE(logits(*loaded, canvas).equal(logits(*made, canvas)));
  GenerateOptions options;
  options.steps = 2;
  options.policy = make_policy("boe_paper");
  const GenerateResult result = generate(*loaded, canvas, options);
  EXPECT_FALSE(result.tokens[0].eq(kMask).any().item<bool>());
  EXPECT_GT(result.cost.backward_rows, 0);
  EXPECT_THROW(load_module("/nowhere.pt", table, info_of()), InputError);
}

TEST_F(Module, FunctionSeesGroupsOfEqualLengthAndTheirActiveRows) {
  std::vector<std::vector<int64_t>> shapes;
  std::vector<std::vector<int64_t>> active_rows;
  const ModuleDenoiser model(info_of(), table, [&](const ModuleCall& call) {
    shapes.push_back(call.embeddings.sizes().vec());
    EXPECT_EQ(call.tokens.sizes(), call.embeddings.sizes().slice(0, 2));
    if (call.active) {
      const at::Tensor& rows = call.active->rows;
      active_rows.emplace_back(rows.const_data_ptr<int64_t>(),
                               rows.const_data_ptr<int64_t>() + rows.numel());
    }
    return at::matmul(call.embeddings, out);
  });
  const at::Tensor features = model.encode(batch, all_rows(batch));
  EXPECT_FALSE(features.requires_grad());
  EXPECT_TRUE(features.allclose(at::matmul(table.index_select(0, batch.tokens), out.detach())));
  EXPECT_EQ(shapes, (std::vector<std::vector<int64_t>>{{1, 5, kWidth}, {2, 7, kWidth}}));
  EXPECT_TRUE(active_rows.empty());
  // Sequences without wanted rows are not computed.
  shapes.clear();
  model.encode(batch, row_set({8}, {0, 0, 1, 1}, at::kCPU));
  EXPECT_EQ(shapes.size(), 1U);
  ask(model, offset);
  EXPECT_EQ(active_rows, (std::vector<std::vector<int64_t>>{{1, 3}, {1, 3, 4, 7, 9, 12}}));
  // What a caller does to the logits does not reach the features.
  model.project(features).zero_();
  EXPECT_GT(features.abs().sum().item<double>(), 0);
}

TEST_F(Module, OnlySequencesWithCandidatesAreDifferentiated) {
  const auto model = make_module(script(out), table, info_of());
  const EntropyGradient all = ask(*model, offset);
  candidates = row_set({1, 4, 17}, {0, 2, 2, 3}, at::kCPU);
  const at::Tensor kept = at::tensor({0, 1, 3}, at::kLong);
  const EntropyGradient some = ask(*model, offset.index_select(0, kept));
  EXPECT_TRUE(some.gradient.allclose(all.gradient.index_select(0, kept)));
  EXPECT_EQ(some.cost.forward_rows, 19);
  EXPECT_EQ(some.cost.backward_rows, 14);
  // Nor are sequences computed in which nothing is asked.
  probes = row_set({3, 12, 14}, {0, 1, 1, 3}, at::kCPU);
  const EntropyGradient fewer = ask(*model, offset.index_select(0, kept));
  EXPECT_TRUE(fewer.gradient.allclose(some.gradient));
  EXPECT_TRUE(fewer.entropy.allclose(some.entropy.index_select(0, at::tensor({0, 2, 3}))));
  EXPECT_EQ(fewer.cost.forward_rows, 14);
}

TEST_F(Module, BadModelsAreRefused) {
  const auto with = [&](ModuleFunction f) { return ModuleDenoiser(info_of(), table, f); };
  const auto identity = [](const ModuleCall& call) { return call.embeddings; };
  EXPECT_THROW(with(identity).encode(batch, all_rows(batch)), InputError);  // width, not vocabulary
  EXPECT_THROW(with([](const ModuleCall&) { return at::Tensor(); }).encode(batch, all_rows(batch)),
               InputError);
  EXPECT_THROW(with({}), InputError);
  const auto detached = with(
      [&](const ModuleCall& call) { return at::matmul(call.embeddings.detach(), out.detach()); });
  EXPECT_THROW(ask(detached, offset), InputError);
  const auto unreached =
      with([&](const ModuleCall& call) { return at::matmul(call.embeddings.detach(), out); });
  EXPECT_THROW(ask(unreached, offset), InputError);
  const auto good = [&](const ModuleCall& call) { return at::matmul(call.embeddings, out); };
  EXPECT_THROW(ModuleDenoiser(info_of(), at::ones({3}), good), InputError);
  EXPECT_THROW(ModuleDenoiser(info_of(), {}, good), InputError);
  EXPECT_THROW(ModuleDenoiser(info_of(), table.to(at::kHalf), good), DeviceError);
  EXPECT_THROW(ModuleDenoiser(info_of(), table.to(at::kMeta), good), DeviceError);
  ModelInfo info = info_of();
  info.mask_token_id = kVocab;
  EXPECT_THROW(ModuleDenoiser(info, table, good), InputError);
  info = info_of();
  info.max_length = 5;
  EXPECT_THROW(ModuleDenoiser(info, table, good).encode(batch, all_rows(batch)), InputError);
  torch::jit::Module words("words");
  words.define("def forward(self, inputs_embeds):\n    return 'words'\n");
  EXPECT_THROW(make_module(words, table, info_of())->encode(batch, all_rows(batch)), InputError);
}

// case R07
TEST_F(Module, ErrorsOfTorchScriptAreOurs) {
  const std::vector<at::Tensor> canvas{at::tensor({4, 2, 2, 7, 2, 2}, at::kLong)};
  const auto said = [&](const char* body) -> std::string {
    torch::jit::Module module("fails");
    module.define(std::string("def forward(self, inputs_embeds):\n") + body);
    const auto model = make_module(module, table, info_of());
    try {
      generate(*model, canvas, {});
    } catch (const InputError& e) {
      return e.what();
    }
    return "no InputError";
  };
  for (const char* body :
       {"    return torch.matmul(inputs_embeds, inputs_embeds[:, :2])\n",
        "    return inputs_embeds.view(-1, 7)\n", "    assert False\n    return inputs_embeds\n"}) {
    EXPECT_EQ(said(body).find("the TorchScript module failed: "), 0U) << said(body);
  }
  const auto path = std::filesystem::temp_directory_path() / "tabes_module_test.pt";
  script(out).save(path.string());
  std::filesystem::resize_file(path, std::filesystem::file_size(path) / 2);
  EXPECT_THROW(load_module(path.string(), table, info_of()), InputError);
  std::filesystem::resize_file(path, 0);
  EXPECT_THROW(load_module(path.string(), table, info_of()), InputError);
  std::filesystem::remove(path);
  EXPECT_THROW(load_module(path.parent_path().string(), table, info_of()), InputError);
}

// case R01
TEST_F(Module, BadLogitsOfTorchScriptAreNamed) {
  torch::jit::Module module("infinite");
  module.define(R"JIT(
def forward(self, inputs_embeds):
    logits = torch.zeros([inputs_embeds.size(0), inputs_embeds.size(1), 11])
    logits[:, 4, 3] = float("inf")
    return logits
)JIT");
  const std::vector<at::Tensor> canvas{at::tensor({4, 2, 2, 7, 2, 2}, at::kLong)};
  try {
    generate(*make_module(module, table, info_of()), canvas, {});
    FAIL() << "no error";
  } catch (const NumericsError& e) {
    EXPECT_EQ(std::string(e.what()).find("step 0, sequence 0, position 4: "), 0U) << e.what();
  }
}

TEST_F(Module, NanGradientsAreErrors) {
  const ModuleDenoiser model(info_of(), table, [&](const ModuleCall& call) {
    // Finite values whose derivative is NaN: sqrt at 0, times 0.
    const at::Tensor zero = (call.embeddings - call.embeddings).sqrt() * 0;
    return at::matmul(call.embeddings + zero, out);
  });
  const std::vector<at::Tensor> canvas{at::tensor({4, 2, 2, 7, 2, 2}, at::kLong)};
  EXPECT_THROW(influence(model, canvas, {{1}}, {{2}}), NumericsError);
  GenerateOptions options;
  options.steps = 4;
  options.policy = make_policy("boe_paper");
  EXPECT_THROW(generate(model, canvas, options), NumericsError);
}

}  // namespace
}  // namespace tabes
