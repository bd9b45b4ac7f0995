// One model in many threads: what a decode comes to is what it comes to alone. Run under
// ThreadSanitizer as well (--gtest_filter=SharedModel.*), which sees the races that come to
// nothing.
#include <ATen/Parallel.h>
#include <gtest/gtest.h>

#include <latch>
#include <thread>

#include "decode_cases.h"

namespace tabes {
namespace {

constexpr int kThreads = 8;

struct Work {
  std::shared_ptr<const Policy> policy;
  GenerateOptions options;
};

// Every policy that keeps something or asks the model for more than a pass. The policies themselves
// are shared as well.
std::vector<Work> work() {
  std::vector<Work> all;
  for (const char* name :
       {"confidence", "klass", "info_gain", "remdm_cap", "oracle", "boe_paper"}) {
    all.push_back({make_policy(name), {}});
  }
  all.push_back({boe(without_factor()), {}});
  all.push_back({boe(without_factor()), {}});
  all.back().options.refresh_every = 2;
  for (size_t i = 0; i < all.size(); ++i) {
    all[i].options.steps = 6;
    all[i].options.policy = all[i].policy;
    all[i].options.temperature = i % 2 ? 0.7 : 0.0;
  }
  return all;
}

std::shared_ptr<const Denoiser> build(const Kind& kind, bool prepack) {
  at::manual_seed(5);
  RandomWeights weights;
  return make_transformer(kind.config, weights, at::kCPU, at::kFloat, prepack);
}

// What thread `number` decodes first is what another decodes last.
std::vector<GenerateResult> decode(const Denoiser& model, const std::vector<Work>& all,
                                   int number) {
  std::vector<GenerateResult> results(all.size());
  for (size_t k = 0; k < all.size(); ++k) {
    const size_t i = (k + static_cast<size_t>(number)) % all.size();
    GenerateOptions options = all[i].options;
    options.seed = static_cast<uint64_t>(number);
    results[i] = generate(model, sequences(), options);
  }
  return results;
}

void expect_same(const GenerateResult& a, const GenerateResult& b) {
  ASSERT_EQ(a.tokens.size(), b.tokens.size());
  for (size_t s = 0; s < a.tokens.size(); ++s) EXPECT_TRUE(at::equal(a.tokens[s], b.tokens[s]));
  ASSERT_EQ(a.trace.size(), b.trace.size());
  for (size_t i = 0; i < a.trace.size(); ++i) {
    EXPECT_TRUE(at::equal(a.trace[i].position, b.trace[i].position));
    EXPECT_TRUE(at::equal(a.trace[i].score, b.trace[i].score));  // to the last bit
  }
  EXPECT_EQ(a.cost.forward_rows, b.cost.forward_rows);
  EXPECT_EQ(a.cost.backward_rows, b.cost.backward_rows);
}

class SharedModel : public testing::TestWithParam<std::tuple<Kind, bool>> {};

TEST_P(SharedModel, EightThreadsDecodeAsOne) {
  const auto& [kind, prepack] = GetParam();
  at::set_num_threads(1);
  const std::vector<Work> all = work();
  std::vector<std::vector<GenerateResult>> wanted, got(kThreads);
  {
    const auto model = build(kind, prepack);
    for (int i = 0; i < kThreads; ++i) wanted.push_back(decode(*model, all, i));
  }
  // A model that has answered nothing yet: what it makes at first need is made by all at once.
  const auto model = build(kind, prepack);
  std::latch start(kThreads);
  std::vector<std::thread> threads;
  for (int i = 0; i < kThreads; ++i) {
    threads.emplace_back([&, i] {
      at::set_num_threads(1);
      start.arrive_and_wait();
      got[i] = decode(*model, all, i);
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (int i = 0; i < kThreads; ++i) {
    ASSERT_EQ(got[i].size(), all.size());
    for (size_t k = 0; k < all.size(); ++k) expect_same(got[i][k], wanted[i][k]);
  }
  // Seeds differ, so that one result for all would have been noticed.
  EXPECT_FALSE(at::equal(got[0][1].tokens[2], got[1][1].tokens[2]));
}

std::vector<Kind> layouts() {
  std::vector<Kind> chosen;
  for (Kind& kind : kinds()) {
    if (kind.name == "llada" || kind.name == "bert") chosen.push_back(std::move(kind));
  }
  return chosen;
}

INSTANTIATE_TEST_SUITE_P(, SharedModel,
                         testing::Combine(testing::ValuesIn(layouts()), testing::Bool()),
                         [](const auto& info) {
                           return std::get<0>(info.param).name +
                                  (std::get<1>(info.param) ? "_prepacked" : "_plain");
                         });

}  // namespace
}  // namespace tabes
