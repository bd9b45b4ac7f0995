#include "checkpoint/tensor_store.h"

#include <algorithm>
#include <filesystem>
#include <optional>
#include <set>

#include "checkpoint/checks.h"
#include "checkpoint/json.h"

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
  const auto pickle = find_pickle(folder);
  if (pickle) {
    fail(folder + "/" + *pickle,
         "is a pickle file, which can run code and is never opened: `tabes convert IN OUT` "
         "rewrites the checkpoint as safetensors");
  }
  fail(folder, "holds neither model.safetensors nor model.safetensors.index.json");
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

void TensorStore::open_shards() {
  const WeightMap map = parse_index(File(path_).read_all(kMaxIndexBytes), path_);
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
