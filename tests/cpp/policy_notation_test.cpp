// Policies as texts: what is read, what is written, what is refused.
#include <gtest/gtest.h>

#include <chrono>
#include <limits>
#include <random>

#include "tabes/boe.h"
#include "tabes/error.h"
#include "tabes/policy.h"

namespace tabes {
namespace {

std::string refusal(const std::string& notation, const std::string& text = "") {
  try {
    make_policy(notation, text);
  } catch (const InputError& error) {
    return error.what();
  }
  return "accepted";
}

const BoEOptions& boe(const std::shared_ptr<const Policy>& policy) {
  return dynamic_cast<const BoE&>(*policy).options();
}

// case N11
TEST(Notation, NamesAndSettings) {
  EXPECT_EQ(notation(*make_policy("threshold")), "threshold(tau=0.9)");
  EXPECT_EQ(notation(*make_policy("threshold(tau=0.8)")), "threshold(tau=0.8)");
  EXPECT_EQ(notation(*make_policy(" threshold ( tau = 0.8 ) ")), "threshold(tau=0.8)");
  EXPECT_EQ(notation(*make_policy("threshold()")), "threshold(tau=0.9)");
  EXPECT_EQ(notation(*make_policy("random()")), "random");
  EXPECT_EQ(notation(*make_policy("klass", "history=3;tau=+.5\n,epsilon=1e-3")),
            "klass(tau=0.5, epsilon=0.001, history=3)");
  EXPECT_EQ(notation(*make_policy("klass(tau=0.5)", "history=3"), false),
            "klass(tau=0.5, history=3)");
  EXPECT_EQ(notation(*make_policy("boe"), false), "boe");
  const BoEOptions o = boe(make_policy("boe(alpha=0.25,0.5; n_candidates=3x, context=exact)"));
  EXPECT_EQ(o.alpha, (std::vector<double>{0.25, 0.5}));
  EXPECT_EQ(o.n_candidates, 3);
  EXPECT_TRUE(o.per_quota);
  EXPECT_EQ(o.context, ContextKind::exact);
  EXPECT_EQ(boe(make_policy("boe(alpha=0.25;0.5)")).alpha, o.alpha);
  EXPECT_FALSE(boe(make_policy("boe(n_candidates=3)")).per_quota);
  EXPECT_EQ(boe(make_policy("boe_paper(rho=0.5)")).rule, ScoreRule::product);
}

// case N08
TEST(Notation, SettingsAsValues) {
  EXPECT_EQ(boe(make_policy("boe", {{"alpha", 0.3}})).alpha, std::vector<double>{0.3});
  EXPECT_EQ(boe(make_policy("boe", {{"halo", 0}})).halo, 0);
  const BoEOptions o = boe(make_policy("boe", {{"alpha", std::vector<double>{0.1, 0.2}},
                                               {"n_candidates", "2.5x"},
                                               {"probes", "nearest"},
                                               {"every", 2}}));
  EXPECT_EQ(o.alpha, (std::vector<double>{0.1, 0.2}));
  EXPECT_EQ(o.n_candidates, 2.5);
  EXPECT_EQ(o.probes, ProbeRule::nearest);
  EXPECT_EQ(o.every, 2);
  EXPECT_EQ(notation(*make_policy("klass(tau=0.5)", {{"history", 4.0}}), false),
            "klass(tau=0.5, history=4)");
}

TEST(Notation, OtherDecodersNames) {
  EXPECT_EQ(make_policy("low_confidence")->name(), "confidence");
  EXPECT_EQ(make_policy("maskgit_plus")->name(), "confidence");
  EXPECT_EQ(make_policy("topk_margin")->name(), "margin");
  EXPECT_EQ(notation(*make_policy("eb(gamma=0.2)")), "entropy_bound(gamma=0.2)");
}

// case N12
TEST(Notation, EveryPolicyReadsBackExactly) {
  for (const std::string& name : policy_names()) {
    const auto policy = make_policy(name);
    const auto again = make_policy(notation(*policy));
    EXPECT_EQ(again->settings(), policy->settings()) << name;
    EXPECT_EQ(make_policy(policy->name(), policy->settings())->settings(), policy->settings());
  }
  std::mt19937_64 random(1);
  std::uniform_real_distribution<double> unit(0.0, 1.0);
  for (int i = 0; i < 2000; ++i) {
    BoEOptions o;
    o.alpha = {unit(random), unit(random), 1.0 / 3};
    o.n_candidates = 1 + std::exp(40 * unit(random));
    o.gamma = std::exp(720 * unit(random) - 700);  // 0 to 1e9 are taken
    o.h_max = std::numeric_limits<double>::denorm_min() * i;
    o.halo = static_cast<int64_t>(random() >> 1);
    const BoE policy(o);
    for (const bool defaults : {false, true}) {
      const BoEOptions read = boe(make_policy(notation(policy, defaults)));
      ASSERT_EQ(read.alpha, o.alpha);
      ASSERT_EQ(read.n_candidates, o.n_candidates);
      ASSERT_EQ(read.gamma, o.gamma);
      ASSERT_EQ(read.h_max, o.h_max);
      ASSERT_EQ(read.halo, o.halo);
    }
  }
}

// case N11, N10
TEST(Notation, RefusalsNameWhatAndCure) {
  const auto has = [](const std::string& text, const char* part) {
    EXPECT_NE(text.find(part), std::string::npos) << text << "\nlacks " << part;
  };
  has(refusal("threshhold"), "did you mean 'threshold'?");
  has(refusal("Low-Confidence"), "did you mean 'low_confidence'?");
  has(refusal("nonsense"), "policy 'nonsense' is unknown; known are random, confidence");
  has(refusal("boe(alhpa=0.3)"), "policy boe has no setting 'alhpa': did you mean 'alpha'?");
  has(refusal("threshold(gamma=1)"), "no setting 'gamma'; it takes tau");
  has(refusal("random(tau=1)"), "it takes none");
  has(refusal("threshold(tau=1.5)"), "policy threshold: tau must be from 0 to 1, not 1.5");
  has(refusal("threshold(tau=nan)"), "not nan");
  has(refusal("threshold(tau=inf)"), "not inf");
  has(refusal("threshold(tau=1e999)"), "tau=1e999: it must be a number");
  has(refusal("threshold(tau=high)"), "tau=high: it must be a number");
  has(refusal("threshold(tau=0.5,0.6)"), "tau=0.5;0.6: it must be a number");
  has(refusal("threshold(tau=0.5, tau=0.5)"), "tau is given twice");
  has(refusal("threshold(tau=0.5)", "tau=0.5"), "tau is given twice");
  has(refusal("klass(history=1.5)"), "whole number");
  has(refusal("boe(halo=0.5)"), "halo=0.5: it must be an integer");
  has(refusal("boe(halo=99999999999999999999)"), "it must be an integer");
  has(refusal("boe(context=frozne)"), "did you mean 'frozen'? It must be one of exact, frozen");
  has(refusal("boe(n_candidates=2.5)"), "a number of rows, or a multiple");
  has(refusal("boe(n_candidates=x)"), "a number of rows, or a multiple");
  has(refusal("boe(alpha=0.5;warm)"), "alpha=0.5;warm: it must be a number or a list");
  has(refusal("boe(alpha=2)"), "alpha must be from 0");
  for (const char* bad : {"", "  ", "()", "(tau=1)"}) has(refusal(bad), "has no name");
  has(refusal("threshold(tau=0.9"), "does not close");
  has(refusal("threshold tau=0.9)"), "does not open");
  has(refusal("threshold((tau=0.9))"), "more than one parenthesis");
  has(refusal("threshold(tau=0.9) or so"), "goes on behind");
  has(refusal("threshold)("), "goes on behind");
  has(refusal("threshold(0.9)"), "'0.9' is no setting");
  has(refusal("threshold(tau=)"), "setting 'tau' has no value");
  has(refusal("threshold(=0.9)"), "has no name");
  has(refusal("threshold(tau=0.9,)"), "an empty setting");
  has(refusal("threshold(,)"), "an empty setting");
  has(refusal(std::string("thre\0shold\xff", 11)), "'thre\\x00shold\\xff' is unknown");
  has(refusal("threshold(tau=" + std::string(200, 'x') + ")"), "...: it must be a number");
}

TEST(Notation, LongAndMutatedTextsAreRefusedAtOnce) {
  const auto start = std::chrono::steady_clock::now();
  const size_t million = 1 << 20;
  for (const std::string& long_text :
       {std::string(million, 'x'), "boe(" + std::string(million, 'x') + ")",
        "boe(alpha=" + std::string(million, '1') + ")", std::string(million, '('),
        "boe(" + std::string(million, ',') + ")", "boe(alpha=" + std::string(million, ';') + ")"}) {
    EXPECT_NE(refusal(long_text), "accepted");
    EXPECT_LT(refusal(long_text).size(), 300u);
    EXPECT_NE(refusal("boe", long_text), "accepted");
  }
  std::string points = "boe(alpha=0.5";
  while (points.size() < 60000) points += ",0.5";
  EXPECT_NE(refusal(points + ")").find("1024"), std::string::npos);
  std::string repeated = "boe(";
  while (repeated.size() < 60000) repeated += "gamma=1,";
  EXPECT_NE(refusal(repeated + "tau=1)").find("given twice"), std::string::npos);
  // Whatever is done to a good text is read or refused.
  const std::string good = "boe(alpha=0.25,0.5; n_candidates=3x, context=exact)";
  const std::string letters = "()=,;x.e-+0123456789 \t\n\xc3\xff" + std::string(1, '\0');
  std::mt19937 random(7);
  for (int i = 0; i < 20000; ++i) {
    std::string text = good;
    for (int changes = 1 + random() % 4; changes > 0; --changes) {
      const size_t at = random() % text.size();
      const char letter = letters[random() % letters.size()];
      if (random() % 3 == 0) {
        text.erase(at, 1 + random() % 3);
      } else if (random() % 2 == 0) {
        text[at] = letter;
      } else {
        text.insert(at, 1, letter);
      }
      if (text.empty()) text = "b";
    }
    const std::string said = refusal(text);
    if (said == "accepted") {
      const auto policy = make_policy(text);
      ASSERT_EQ(make_policy(notation(*policy))->settings(), policy->settings()) << text;
    }
  }
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
  EXPECT_LT(seconds.count(), 20);  // a quadratic reader takes minutes
}

}  // namespace
}  // namespace tabes
