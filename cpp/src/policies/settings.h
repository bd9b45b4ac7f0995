// Settings by name: how they are read, checked and written.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

#include "messages.h"
#include "tabes/policy.h"

namespace tabes {

// An enumerator and what it is written as.
template <typename Value>
struct Name {
  const char* name;
  Value value;
};

template <typename Value, size_t n>
std::vector<std::string> names_of(const Name<Value> (&names)[n]) {
  std::vector<std::string> all;
  for (const auto& entry : names) all.emplace_back(entry.name);
  return all;
}

template <typename Value, size_t n>
const Value* find(const Name<Value> (&names)[n], const std::string& name) {
  for (const auto& entry : names) {
    if (name == entry.name) return &entry.value;
  }
  return nullptr;
}

// "a, b, c"
std::string listed(const std::vector<std::string>& names);
// ": did you mean 'x'?" with the known name that `name` is likely a misspelling of, or nothing.
std::string did_you_mean(const std::string& name, const std::vector<std::string>& known);
// A text as a message may quote it: printable, and not longer than a line.
std::string quotable(std::string_view text);
// What a value is written as; several numbers with semicolons between them.
std::string written(const SettingValue& value);

// Gives a policy's settings to what they configure. A setting that was not given stays as it is.
class SettingsReader {
 public:
  SettingsReader(std::string policy, const PolicySettings& given)
      : policy_(std::move(policy)), given_(given) {}

  void number(const char* name, double& into);
  void number(const char* name, double& into, double least, double most, bool whole);
  void whole(const char* name, int64_t& into);
  void points(const char* name, std::vector<double>& into);
  // A number of rows, or a multiple of the quota: "3x".
  void count(const char* name, double& into, bool& per_quota);
  template <typename Value, size_t n>
  void choice(const char* name, const Name<Value> (&names)[n], Value& into) {
    const SettingValue* value = take(name);
    if (!value) return;
    const auto* text = std::get_if<std::string>(value);
    const Value* known = text ? find(names, *text) : nullptr;
    if (!known) {
      refuse(name, *value, text ? did_you_mean(*text, names_of(names)) : "",
             "one of " + listed(names_of(names)));
    }
    into = *known;
  }
  // Throws InputError for a setting that nobody asked for, and for one given twice.
  void finish() const;

 private:
  const SettingValue* take(const char* name);
  [[noreturn]] void refuse(const char* name, const SettingValue& value, const std::string& hint,
                           const std::string& wanted) const;
  // Of a value that is one number, or text that is; else none.
  bool real(const SettingValue& value, double& into) const;

  std::string policy_;
  const PolicySettings& given_;
  std::vector<std::string> known_;
};

// Takes the settings of what they configure; the methods are SettingsReader's.
class SettingsWriter {
 public:
  void number(const char* name, const double& value) { add(name, value); }
  void whole(const char* name, const int64_t& value) { add(name, value); }
  void points(const char* name, const std::vector<double>& value) { add(name, value); }
  void count(const char* name, const double& value, const bool& per_quota);
  template <typename Value, size_t n>
  void choice(const char* name, const Name<Value> (&names)[n], const Value& value) {
    for (const auto& entry : names) {
      if (entry.value == value) add(name, std::string(entry.name));
    }
  }
  PolicySettings settings;

 private:
  void add(const char* name, SettingValue value) { settings.emplace_back(name, std::move(value)); }
};

// A policy's name and settings as they stand in a text; see make_policy().
struct Notation {
  std::string name;
  PolicySettings settings;
};
Notation read_notation(std::string_view text);
PolicySettings read_settings(const std::string& policy, std::string_view text);

}  // namespace tabes
