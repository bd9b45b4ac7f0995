#include "checkpoint/tensor_store.h"

#include <algorithm>
#include <filesystem>
#include <optional>
#include <regex>
#include <set>

#include "checkpoint/checks.h"
#include "checkpoint/families.h"
#include "checkpoint/json.h"
#include "tabes/error.h"

namespace tabes::checkpoint {
namespace {

constexpr uint64_t kMaxIndexBytes = uint64_t{100} << 20;
constexpr size_t kMaxShards = 4096;
constexpr size_t kMaxFileNameBytes = 255;

// A shard is named by the index, and the index by whoever made the checkpoint: only names that
// cannot leave the folder are opened. Comparing resolved paths instead would refuse the Hub cache,
// whose files are all links out of their folder.
void check_shard_name(const std::string& name, const std::string& file) {
  const auto reject = [&](const std::string& why) {
    fail(file, "the shard name " + quote(name) + " " + why);
  };
  if (name.empty()) reject("is empty");
  if (name.size() > kMaxFileNameBytes) reject("is too long");
  if (has_control_characters(name)) reject("has control characters");
  if (name.find_first_of("/\\") != name.npos || name == "." || name == "..") {
    reject("is not a plain file name: shards lie in the folder of their index");
  }
  if (name.ends_with(".bin") || name.ends_with(".pt") || name.ends_with(".pth")) {
    reject("is a pickle file, which is never opened: `tabes convert IN OUT` rewrites it");
  }
  if (!name.ends_with(".safetensors")) reject("does not end in .safetensors");
}

// A pickle checkpoint in `folder`, if there is one.
std::optional<std::string> find_pickle(const std::string& folder) {
  std::optional<std::string> found;
  std::error_code error;
  std::filesystem::directory_iterator it(folder, error), end;
  for (; !error && it != end; it.increment(error)) {
    const std::string name = it->path().filename().string();
    const bool pickle = name.ends_with(".bin") || name.ends_with(".pt") || name.ends_with(".pth");
    // training_args.bin lies in many folders and holds no weights.
    if (!pickle || name == "training_args.bin") continue;
    // The smallest name, so that the message does not depend on the directory's order.
    if (!found || name < *found) found = name;
  }
  return found;
}

// The prefix that TensorStore::tidy() drops; empty if there is none.
std::string_view common_prefix(const std::map<std::string_view, StoredTensor>& tensors,
                               const std::vector<std::string_view>& known) {
  for (const std::string_view name : known) {
    if (tensors.contains(name)) return {};
  }
  for (const auto& [full, stored] : tensors) {
    for (const std::string_view name : known) {
      if (full.size() <= name.size() + 1 || !full.ends_with(name)) continue;
      const std::string_view prefix = full.substr(0, full.size() - name.size());
      if (!prefix.ends_with('.')) continue;
      const bool common = std::ranges::all_of(
          tensors, [&](const auto& entry) { return entry.first.starts_with(prefix); });
      if (common) return prefix;
    }
  }
  return {};
}

}  // namespace

WeightMap parse_index(std::string_view text, const std::string& file) {
  const Json root = parse_json(text, file);
  if (root.object() == nullptr) fail(file, "is not a JSON object");
  const Json* map = root.find("weight_map");
  if (map == nullptr) fail(file, "has no weight_map");
  if (map->object() == nullptr) fail(file, "its weight_map is " + map->describe());
  if (map->object()->empty()) fail(file, "its weight_map is empty");
  WeightMap entries;
  entries.reserve(map->object()->size());
  for (const auto& [tensor, shard] : *map->object()) {
    if (tensor.empty() || tensor.size() > kMaxNameBytes || has_control_characters(tensor)) {
      fail(file,
           "the tensor name " + quote(tensor) + " is empty, too long or has control characters");
    }
    if (shard.string() == nullptr) {
      fail(file, "tensor " + quote(tensor) + " is mapped to " + shard.describe() +
                     ", not to a file name");
    }
    check_shard_name(*shard.string(), file);
    entries.emplace_back(tensor, *shard.string());
  }
  return entries;
}

TensorStore::TensorStore(const std::string& folder)
    : folder_(folder), path_(folder + "/model.safetensors") {
  if (entry_exists(path_)) {
    files_.push_back(std::make_unique<SafetensorsFile>(path_));
    add(*files_.back());
    return;
  }
  path_ += ".index.json";
  if (entry_exists(path_)) {
    open_shards();
    return;
  }
  path_ = folder;
  if (open_numbered_shards()) return;
  const auto pickle = find_pickle(folder);
  if (pickle) {
    fail(folder + "/" + *pickle,
         "is a pickle file, which can run code and is never opened: `tabes convert IN OUT` "
         "rewrites the checkpoint as safetensors");
  }
  fail(folder, "holds neither model.safetensors nor model.safetensors.index.json");
}

void TensorStore::tidy(const std::vector<std::string>& patterns,
                       const std::vector<std::string_view>& known) {
  std::set<std::string_view> used;
  const auto leave_out = [&](auto name_of) {
    for (auto it = tensors_.begin(); it != tensors_.end();) {
      const std::string* by = nullptr;
      for (const std::string& pattern : patterns) {
        if (!matches(pattern, name_of(*it))) continue;
        used.insert(pattern);
        by = &pattern;
      }
      if (by != nullptr) out_.emplace(it->first, *by);
      it = by != nullptr ? tensors_.erase(it) : std::next(it);
    }
  };
  leave_out([](const auto& entry) { return entry.first; });
  const std::string_view prefix = common_prefix(tensors_, known);
  if (!prefix.empty()) {
    std::map<std::string_view, StoredTensor> shorter;
    for (const auto& [name, stored] : tensors_) {
      shorter.emplace(name.substr(prefix.size()), stored);
    }
    tensors_ = std::move(shorter);
    leave_out([](const auto& entry) { return entry.first; });
  }
  for (const std::string& pattern : patterns) {
    if (used.contains(pattern)) continue;
    throw InputError("ignore: no tensor in " + printable(path_) + " has a name like " +
                     quote(pattern));
  }
}

std::string_view TensorStore::left_out(std::string_view name) const {
  for (const auto& [other, pattern] : out_) {
    if (other == name) return pattern;
    const bool with_prefix = other.size() > name.size() && other.ends_with(name) &&
                             other[other.size() - name.size() - 1] == '.';
    if (with_prefix) return pattern;
  }
  return {};
}

const StoredTensor* TensorStore::find(std::string_view name) const {
  const auto it = tensors_.find(name);
  return it == tensors_.end() ? nullptr : &it->second;
}

void TensorStore::add(const SafetensorsFile& file) {
  for (const TensorInfo& info : file.tensors()) {
    const auto [it, added] = tensors_.try_emplace(info.name, StoredTensor{&file, &info});
    if (!added) {
      fail(path_, "tensor " + quote(info.name) + " is in two shards, " +
                      quote(it->second.file->path()) + " and " + quote(file.path()));
    }
  }
}

// Some downloads leave the index behind. The numbers in the names say whether all shards are there.
bool TensorStore::open_numbered_shards() {
  static const std::regex form("model-([0-9]{5})-of-([0-9]{5})\\.safetensors");
  std::string count;
  std::error_code error;
  std::filesystem::directory_iterator it(folder_, error), end;
  for (; !error && it != end; it.increment(error)) {
    const std::string name = it->path().filename().string();
    std::smatch found;
    if (!std::regex_match(name, found, form)) continue;
    if (!count.empty() && count != found[2]) {
      fail(folder_, "holds shards of " + count + " and of " + found[2].str() +
                        " but no model.safetensors.index.json");
    }
    count = found[2];
  }
  if (count.empty()) return false;
  const int shards = std::stoi(count);
  if (shards < 1 || shards > static_cast<int>(kMaxShards)) {
    fail(folder_, "holds a shard \"of " + count + "\"");
  }
  for (int i = 1; i <= shards; ++i) {
    std::string number = std::to_string(i);
    number.insert(0, count.size() - number.size(), '0');
    const std::string name = "model-" + number + "-of-" + count + ".safetensors";
    if (!entry_exists(folder_ + "/" + name)) {
      fail(folder_, "the shard " + quote(name) + " is missing: is the download complete?");
    }
    files_.push_back(std::make_unique<SafetensorsFile>(folder_ + "/" + name));
    add(*files_.back());
  }
  return true;
}

void TensorStore::open_shards() {
  const WeightMap map = parse_index(read_text(path_, kMaxIndexBytes), path_);
  std::set<std::string> names;
  for (const auto& [tensor, shard] : map) names.insert(shard);
  if (names.size() > kMaxShards) fail(path_, "names too many shards");
  std::map<std::string_view, const SafetensorsFile*> shards;
  for (const std::string& name : names) {
    if (!entry_exists(folder_ + "/" + name)) {
      fail(path_, "the shard " + quote(name) + " is missing: is the download complete?");
    }
    files_.push_back(std::make_unique<SafetensorsFile>(folder_ + "/" + name));
    shards[name] = files_.back().get();
    add(*files_.back());
  }
  for (const auto& [tensor, shard] : map) {
    const StoredTensor* stored = find(tensor);
    if (stored == nullptr || stored->file != shards.at(shard)) {
      fail(path_,
           "tensor " + quote(tensor) + " is not in " + quote(shard) + " as the weight_map says");
    }
  }
  if (map.size() == tensors_.size()) return;
  std::set<std::string_view> listed;
  for (const auto& [tensor, shard] : map) listed.insert(tensor);
  for (const auto& [name, stored] : tensors_) {
    if (!listed.contains(name)) {
      fail(path_, "tensor " + quote(name) + " of " + quote(stored.file->path()) +
                      " is not in the weight_map");
    }
  }
}

}  // namespace tabes::checkpoint
