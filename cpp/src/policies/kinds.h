// The named policies, by file, and what they share.
#pragma once

#include <memory>

#include "batch/column.h"
#include "tabes/policy.h"

namespace tabes {

// Settings of a named policy, all of them present and in range.
class Settings {
 public:
  explicit Settings(PolicyOptions values) : values_(std::move(values)) {}
  double operator[](const char* name) const { return values_.at(name); }
  int64_t whole(const char* name) const { return static_cast<int64_t>(values_.at(name)); }

 private:
  PolicyOptions values_;
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
