#include "policies/settings.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <numeric>
#include <set>

namespace tabes {
namespace {

// Changes between two texts: letters put in, left out, replaced, or swapped with the next.
size_t distance(std::string_view a, std::string_view b) {
  std::vector<size_t> before, row(b.size() + 1), next(b.size() + 1);
  std::iota(row.begin(), row.end(), size_t{0});
  for (size_t i = 0; i < a.size(); ++i) {
    next[0] = i + 1;
    for (size_t k = 0; k < b.size(); ++k) {
      next[k + 1] = std::min({row[k + 1] + 1, next[k] + 1, row[k] + (a[i] != b[k])});
      if (i > 0 && k > 0 && a[i] == b[k - 1] && a[i - 1] == b[k]) {
        next[k + 1] = std::min(next[k + 1], before[k - 1] + 1);
      }
    }
    before = std::exchange(row, next);
  }
  return row[b.size()];
}

std::string lower(std::string_view text) {
  std::string result(text);
  for (char& c : result) {
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
    if (c == '-') c = '_';
  }
  return result;
}

std::string shortest(double value) {
  std::array<char, 32> text;
  const auto end = std::to_chars(text.data(), text.data() + text.size(), value);
  return {text.data(), end.ptr};
}

// The whole of a text as a number.
template <typename Number>
bool parsed(std::string_view text, Number& into) {
  if (text.size() > 1 && text[0] == '+' && text[1] != '-') text.remove_prefix(1);
  const auto end = std::from_chars(text.data(), text.data() + text.size(), into);
  return end.ec == std::errc() && end.ptr == text.data() + text.size();
}

std::string_view trimmed(std::string_view text) {
  constexpr const char* kSpace = " \t\n\r\f\v";
  const size_t first = text.find_first_not_of(kSpace);
  if (first == std::string_view::npos) return {};
  return text.substr(first, text.find_last_not_of(kSpace) - first + 1);
}

// Every part of a text that ends at a comma or a semicolon.
std::vector<std::string_view> parts(std::string_view text) {
  std::vector<std::string_view> result;
  for (size_t from = 0;;) {
    const size_t end = text.find_first_of(",;", from);
    result.push_back(trimmed(text.substr(from, end - from)));
    if (end == std::string_view::npos) return result;
    from = end + 1;
  }
}

std::string shown(const SettingValue& value) {
  const std::string text = quotable(written(value));
  return std::holds_alternative<std::vector<double>>(value) ? "[" + text + "]" : text;
}

constexpr size_t kLongest = 1 << 16;  // of a notation; nobody writes such a one

}  // namespace

std::string listed(const std::vector<std::string>& names) {
  std::string all;
  for (const std::string& name : names) all += (all.empty() ? "" : ", ") + name;
  return all;
}

std::string did_you_mean(const std::string& name, const std::vector<std::string>& known) {
  if (name.size() > 40) return {};
  const std::string* nearest = nullptr;
  size_t least = std::max<size_t>(1, name.size() / 3) + 1;
  for (const std::string& candidate : known) {
    const size_t d = distance(lower(name), lower(candidate));
    if (d < least && d < candidate.size()) {
      least = d;
      nearest = &candidate;
    }
  }
  return nearest ? ": did you mean '" + *nearest + "'?" : std::string();
}

std::string quotable(std::string_view text) {
  constexpr size_t kMost = 60;
  std::string result;
  for (const char c : text.substr(0, kMost)) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte >= 0x20 && byte < 0x7f) {
      result += c;
    } else {
      constexpr const char* kDigits = "0123456789abcdef";
      result += {'\\', 'x', kDigits[byte >> 4], kDigits[byte & 15]};
    }
  }
  return text.size() > kMost ? result + "..." : result;
}

std::string written(const SettingValue& value) {
  if (const auto* text = std::get_if<std::string>(&value)) return *text;
  if (const auto* number = std::get_if<double>(&value)) return shortest(*number);
  if (const auto* number = std::get_if<int64_t>(&value)) return std::to_string(*number);
  std::string all;
  for (const double number : std::get<std::vector<double>>(value)) {
    all += (all.empty() ? "" : ";") + shortest(number);
  }
  return all;
}

const SettingValue* SettingsReader::take(const char* name) {
  known_.emplace_back(name);
  const auto at = std::find_if(given_.begin(), given_.end(),
                               [&](const auto& setting) { return setting.first == name; });
  return at == given_.end() ? nullptr : &at->second;
}

void SettingsReader::refuse(const char* name, const SettingValue& value, const std::string& hint,
                            const std::string& wanted) const {
  tabes::refuse("policy ", policy_, ": ", name, "=", shown(value), hint.empty() ? ": it" : hint,
                hint.empty() ? "" : " It", " must be ", wanted);
}

bool SettingsReader::real(const SettingValue& value, double& into) const {
  if (const auto* number = std::get_if<double>(&value)) {
    into = *number;
    return true;
  }
  if (const auto* number = std::get_if<int64_t>(&value)) {
    into = static_cast<double>(*number);
    return true;
  }
  const auto* text = std::get_if<std::string>(&value);
  return text && parsed(*text, into);
}

void SettingsReader::number(const char* name, double& into) {
  const SettingValue* value = take(name);
  if (value && !real(*value, into)) refuse(name, *value, "", "a number");
}

void SettingsReader::number(const char* name, double& into, double least, double most, bool whole) {
  number(name, into);
  if (!(into >= least && into <= most) || (whole && into != std::floor(into))) {
    tabes::refuse("policy ", policy_, ": ", name, " must be ", whole ? "a whole number " : "",
                  "from ", least, " to ", most, ", not ", into);
  }
}

void SettingsReader::whole(const char* name, int64_t& into) {
  const SettingValue* value = take(name);
  if (!value) return;
  if (const auto* number = std::get_if<int64_t>(value)) {
    into = *number;
    return;
  }
  const auto* text = std::get_if<std::string>(value);
  if (text && parsed(*text, into)) return;
  double number = 0;
  if (!real(*value, number) || number != std::floor(number) || !(std::abs(number) < 0x1p63)) {
    refuse(name, *value, "", "an integer");
  }
  into = static_cast<int64_t>(number);
}

void SettingsReader::points(const char* name, std::vector<double>& into) {
  const SettingValue* value = take(name);
  if (!value) return;
  std::vector<double> numbers;
  if (const auto* several = std::get_if<std::vector<double>>(value)) {
    numbers = *several;
  } else if (const auto* text = std::get_if<std::string>(value)) {
    for (const std::string_view part : parts(*text)) {
      numbers.push_back(0);
      if (!parsed(part, numbers.back())) refuse(name, *value, "", "a number or a list of numbers");
    }
  } else {
    numbers.push_back(0);
    real(*value, numbers.back());
  }
  into = std::move(numbers);
}

void SettingsReader::count(const char* name, double& into, bool& per_quota) {
  const SettingValue* value = take(name);
  if (!value) return;
  const auto* text = std::get_if<std::string>(value);
  const bool multiple = text && !text->empty() && text->back() == 'x';
  double number = 0;
  const bool known = multiple ? parsed(std::string_view(*text).substr(0, text->size() - 1), number)
                              : real(*value, number) && number == std::floor(number);
  if (!known) refuse(name, *value, "", "a number of rows, or a multiple of the quota such as 3x");
  into = number;
  per_quota = multiple;
}

void SettingsReader::finish() const {
  std::set<std::string> seen;
  for (const auto& [name, value] : given_) {
    if (std::find(known_.begin(), known_.end(), name) == known_.end()) {
      const std::string hint = did_you_mean(name, known_);
      tabes::refuse("policy ", policy_, " has no setting '", quotable(name), "'", hint,
                    hint.empty() ? "; it takes " : " It takes ",
                    known_.empty() ? "none" : listed(known_));
    }
    if (!seen.insert(name).second) {
      tabes::refuse("policy ", policy_, ": ", name, " is given twice");
    }
  }
}

void SettingsWriter::count(const char* name, const double& value, const bool& per_quota) {
  if (per_quota) {
    add(name, shortest(value) + "x");
  } else if (std::abs(value) < 0x1p53) {
    add(name, static_cast<int64_t>(value));
  } else {
    add(name, value);
  }
}

PolicySettings read_settings(const std::string& policy, std::string_view text) {
  const auto bad = [&](const auto&... what) {
    refuse("policy ", quotable(policy), ": ", what..., "; settings are written as in \"",
           "alpha=0.25, 0.5; n_candidates=3x\"");
  };
  if (text.size() > kLongest) {
    bad("its settings are ", text.size(), " characters long, where ", kLongest, " are allowed");
  }
  PolicySettings settings;
  if (trimmed(text).empty()) return settings;
  for (const std::string_view part : parts(text)) {
    const size_t equals = part.find('=');
    if (equals == std::string_view::npos) {
      if (part.empty()) bad("there is an empty setting in '", quotable(text), "'");
      if (settings.empty()) bad("'", quotable(part), "' is no setting, which has a name and a '='");
      std::get<std::string>(settings.back().second) += ";" + std::string(part);
      continue;
    }
    const std::string_view name = trimmed(part.substr(0, equals));
    const std::string_view value = trimmed(part.substr(equals + 1));
    if (name.empty()) bad("a setting in '", quotable(text), "' has no name");
    if (value.empty()) bad("setting '", quotable(name), "' has no value");
    settings.emplace_back(name, std::string(value));
  }
  return settings;
}

Notation read_notation(std::string_view text) {
  const auto bad = [&](const char* what) {
    refuse("policy '", quotable(text), "' ", what,
           "; policies are written as a name or as in \"threshold(tau=0.9)\"");
  };
  if (text.size() > kLongest) bad("is too long");
  const std::string_view whole = trimmed(text);
  const size_t open = whole.find('(');
  const size_t close = whole.find(')');
  Notation result;
  result.name = std::string(trimmed(whole.substr(0, open)));
  if (result.name.empty()) bad("has no name");
  if (open == std::string_view::npos) {
    if (close != std::string_view::npos) bad("closes a parenthesis that it does not open");
    return result;
  }
  if (whole.find('(', open + 1) != std::string_view::npos) bad("opens more than one parenthesis");
  if (close == std::string_view::npos) bad("opens a parenthesis that it does not close");
  if (close + 1 != whole.size()) bad("goes on behind its parentheses");
  result.settings = read_settings(result.name, whole.substr(open + 1, close - open - 1));
  return result;
}

}  // namespace tabes
