// The named policies, by file, and what they share.
#pragma once

#include <c10/util/Exception.h>

#include <memory>
#include <string>
#include <string_view>
#include <variant>

#include "batch/column.h"
#include "tabes/policy.h"

namespace tabes {

// Numbers that a named policy is set by, all of them present and in range.
class Settings {
 public:
  Settings(std::string policy, PolicySettings values)
      : policy_(std::move(policy)), values_(std::move(values)) {}
  double operator[](std::string_view name) const {
    const SettingValue& value = at(name);
    const auto* whole = std::get_if<int64_t>(&value);
    return whole ? static_cast<double>(*whole) : std::get<double>(value);
  }
  int64_t whole(std::string_view name) const { return std::get<int64_t>(at(name)); }
  const std::string& policy() const { return policy_; }
  const PolicySettings& values() const { return values_; }

 private:
  const SettingValue& at(std::string_view name) const {
    for (const auto& [known, value] : values_) {
      if (known == name) return value;
    }
    TORCH_INTERNAL_ASSERT(false, "no setting ", name);
  }

  std::string policy_;
  PolicySettings values_;
};

// A policy that is nothing beside its name and settings.
class NamedPolicy : public Policy {
 public:
  explicit NamedPolicy(const Settings& settings) : settings_(settings) {}
  std::string name() const final { return settings_.policy(); }
  PolicySettings settings() const final { return settings_.values(); }

 private:
  Settings settings_;
};

// adaptive.cpp
std::shared_ptr<const Policy> make_threshold(const Settings& settings);
std::shared_ptr<const Policy> make_factor(const Settings& settings);
std::shared_ptr<const Policy> make_entropy_bound(const Settings& settings);
// klass.cpp
std::shared_ptr<const Policy> make_klass(const Settings& settings);
// lookahead.cpp
std::shared_ptr<const Policy> make_info_gain(const Settings& settings);
std::shared_ptr<const Policy> make_lookum(const Settings& settings);
std::shared_ptr<const Policy> make_oracle(const Settings& settings);
// remdm.cpp
enum class ReMDM { cap, rescale, conf, loop };
std::shared_ptr<const Policy> make_remdm(ReMDM strategy, const Settings& settings);

}  // namespace tabes
