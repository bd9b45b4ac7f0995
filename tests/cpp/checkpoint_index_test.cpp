// Which files of a folder are opened: index cases, and what the file system can put in the way.
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <chrono>
#include <string>
#include <utility>
#include <vector>

#include "checkpoint/file.h"
#include "checkpoint/tensor_store.h"
#include "checkpoint_models.h"
#include "tabes/checkpoint.h"

namespace tabes::testing {
namespace {

using checkpoint::SafetensorsFile;
using checkpoint::TensorStore;

std::string index_of(const std::string& entries) {
  return "{\"weight_map\":{" + entries + "}}";
}

// A folder with two shards: a.safetensors holds x and y, b.safetensors holds z.
class Shards : public ::testing::Test {
 protected:
  Shards() {
    folder_.write("a.safetensors",
                  SafetensorsBuilder().add_ramp("x", {2}).add_ramp("y", {3}).bytes());
    folder_.write("b.safetensors", SafetensorsBuilder().add_ramp("z", {4}).bytes());
  }
  void expect_index_rejected(const std::string& text, const std::string& fragment) {
    SCOPED_TRACE(text.substr(0, 200));
    const std::string path = folder_.write("model.safetensors.index.json", text);
    expect_rejected([&] { TensorStore store(folder_.path()); }, path, fragment);
  }

  TempFolder folder_;
  const std::string good_ = R"("x":"a.safetensors","y":"a.safetensors","z":"b.safetensors")";
};

TEST_F(Shards, AreReadThroughTheIndex) {
  folder_.write("model.safetensors.index.json",
                R"({"metadata":{"total_size":36},"weight_map":{)" + good_ + "}}");
  const TensorStore store(folder_.path());
  EXPECT_EQ(store.tensors().size(), 3U);
  EXPECT_EQ(store.find("z")->file->path(), folder_.path("b.safetensors"));
  EXPECT_EQ(store.find("w"), nullptr);
}

TEST_F(Shards, NamesThatAreNoPlainFileNamesAreRejected) {
  const std::string plain = "is not a plain file name";
  const std::vector<std::pair<std::string, std::string>> names = {
      {"/etc/passwd", plain},
      {"/tmp/a.safetensors", plain},
      {"../a.safetensors", plain},
      {"../../../../etc/shadow", plain},
      {"..", plain},
      {".", plain},
      {"./a.safetensors", plain},
      {"sub/a.safetensors", plain},
      {"a.safetensors/", plain},
      {"..\\\\a.safetensors", plain},
      {"C:\\\\a.safetensors", plain},
      {"\\u002e\\u002e\\u002fa.safetensors", plain},
      {"", "is empty"},
      {"a.safetensors\\u0000.bin", "control characters"},
      {"\\u001b[31m.safetensors", "control characters"},
      {"a\\n.safetensors", "control characters"},
      {std::string(300, 'n') + ".safetensors", "too long"},
      {"pytorch_model.bin", "never opened"},
      {"model.pt", "never opened"},
      {"a.json", "does not end in .safetensors"},
      {"a.safetensors ", "does not end in .safetensors"},
      {"missing.safetensors", "\"missing.safetensors\" is missing"}};
  for (const auto& [name, fragment] : names) {
    expect_index_rejected(index_of(good_ + R"(,"w":")" + name + "\""), fragment);
  }
}

TEST_F(Shards, MalformedIndexesAreRejected) {
  const std::vector<std::pair<std::string, std::string>> cases = {
      {"", "invalid JSON"},
      {"[]", "not a JSON object"},
      {"{}", "no weight_map"},
      {R"({"weight_map":null})", "weight_map is null"},
      {R"({"weight_map":[]})", "weight_map is an array"},
      {R"({"weight_map":"a.safetensors"})", "weight_map is \"a.safetensors\""},
      {R"({"weight_map":{}})", "weight_map is empty"},
      {R"({"weight_map":{},"weight_map":{}})", "\"weight_map\" is repeated"},
      {index_of(good_ + R"(,"x":"b.safetensors")"), "\"x\" is repeated"},
      {index_of(good_ + R"(,"\u0078":"a.safetensors")"), "\"x\" is repeated"},
      {index_of(R"("x":1)"), "is mapped to 1"},
      {index_of(R"("x":null)"), "is mapped to null"},
      {index_of(R"("x":["a.safetensors"])"), "is mapped to an array"},
      {index_of(R"("x":{"f":"a.safetensors"})"), "is mapped to an object"},
      {index_of(R"("":"a.safetensors")"), "the tensor name \"\" is empty"},
      {index_of(R"("a\u0007":"a.safetensors")"), "control characters"},
      {index_of(good_) + "x", "invalid JSON"},
      {std::string(1, '\0') + index_of(good_), "NUL byte"}};
  for (const auto& [text, fragment] : cases) expect_index_rejected(text, fragment);
}

TEST_F(Shards, MustHoldWhatTheIndexSays) {
  const std::string a = R"("a.safetensors")", b = R"("b.safetensors")";
  expect_index_rejected(index_of(good_ + R"(,"w":)" + a),
                        "tensor \"w\" is not in \"a.safetensors\"");
  expect_index_rejected(index_of(R"("x":)" + b + R"(,"y":)" + a + R"(,"z":)" + b),
                        "tensor \"x\" is not in \"b.safetensors\"");
  expect_index_rejected(index_of(R"("x":)" + a + R"(,"z":)" + b), "is not in the weight_map");
  folder_.write("c.safetensors", SafetensorsBuilder().add_ramp("x", {2}).bytes());
  expect_index_rejected(index_of(good_ + R"(,"v":"c.safetensors")"), "is in two shards");
  folder_.write("b.safetensors", "<html>");
  folder_.write("model.safetensors.index.json", index_of(good_));
  expect_rejected([&] { TensorStore store(folder_.path()); }, folder_.path("b.safetensors"),
                  "web page");
}

TEST_F(Shards, YieldToASingleFile) {
  folder_.write("model.safetensors", SafetensorsBuilder().add_ramp("only", {1}).bytes());
  folder_.write("model.safetensors.index.json", "nonsense");
  EXPECT_EQ(TensorStore(folder_.path()).tensors().size(), 1U);
}

// Opens what lies at model.safetensors; none of it may take long, whatever it is.
void expect_file_rejected(const TempFolder& folder, const std::string& fragment) {
  const auto start = std::chrono::steady_clock::now();
  expect_rejected([&] { TensorStore store(folder.path()); }, folder.path("model.safetensors"),
                  fragment);
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(1));
}

TEST(CheckpointFiles, OnlyRegularFilesAreRead) {
  const TempFolder folder;
  const std::string path = folder.path("model.safetensors");
  ASSERT_EQ(::mkfifo(path.c_str(), 0600), 0);
  expect_file_rejected(folder, "is a pipe, not a regular file");
  fs::remove(path);
  fs::create_directory(path);
  expect_file_rejected(folder, "is a folder, not a regular file");
  fs::remove(path);
  for (const char* device : {"/dev/zero", "/dev/null", "/dev/urandom"}) {
    fs::create_symlink(device, path);
    expect_file_rejected(folder, "is a device, not a regular file");
    fs::remove(path);
  }
  fs::create_symlink(folder.path(), path);
  expect_file_rejected(folder, "is a folder, not a regular file");
}

TEST(CheckpointFiles, BrokenLinksAreReported) {
  const TempFolder folder;
  const std::string path = folder.path("model.safetensors");
  fs::create_symlink(folder.path("nowhere"), path);
  expect_file_rejected(folder, "cannot be opened: No such file");
  fs::remove(path);
  fs::create_symlink(path, path);
  expect_file_rejected(folder, "cannot be opened: Too many levels of symbolic links");
  fs::remove(path);
  fs::create_symlink(folder.path("loop"), path);
  fs::create_symlink(path, folder.path("loop"));
  expect_file_rejected(folder, "cannot be opened: Too many levels of symbolic links");
}

TEST(CheckpointFiles, UnreadableFilesAreReported) {
  if (::geteuid() == 0) GTEST_SKIP() << "root reads everything";
  const TempFolder folder;
  tiny_llada().write(folder);
  ASSERT_EQ(::chmod(folder.path("model.safetensors").c_str(), 0), 0);
  expect_file_rejected(folder, "cannot be opened: Permission denied");
}

TEST(CheckpointFiles, OtherContentIsReported) {
  const TempFolder folder;
  folder.write("model.safetensors", "version https://git-lfs.github.com/spec/v1\n");
  expect_file_rejected(folder, "git lfs pull");
  folder.write("model.safetensors", "\x80\x02}q" + zeros(40) + "\x80");
  expect_file_rejected(folder, "is a Python pickle under another name, which is never opened");
  folder.write("model.safetensors", "");
  expect_file_rejected(folder, "is empty");
}

TEST(CheckpointFiles, TruncationWhileReadingIsAnError) {
  const TempFolder folder;
  const std::string path =
      folder.write("model.safetensors", SafetensorsBuilder().add_ramp("x", {100'000}).bytes());
  const SafetensorsFile file(path);
  std::string data(400'000, '\0');
  fs::resize_file(path, 200'000);
  expect_rejected([&] { file.read(file.tensors()[0], 0, data.data(), data.size()); }, path,
                  "something is truncating it");
}

TEST(CheckpointFiles, RunningOutOfDescriptorsIsAnError) {
  const TempFolder folder;
  tiny_llada().write(folder);
  rlimit old{};
  ASSERT_EQ(::getrlimit(RLIMIT_NOFILE, &old), 0);
  const rlimit none{0, old.rlim_max};
  ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &none), 0);
  try {
    TensorStore store(folder.path());
    ADD_FAILURE();
  } catch (const CheckpointError& error) {
    EXPECT_NE(std::string(error.what()).find("Too many open files"), std::string::npos);
  }
  ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &old), 0);
}

TEST(CheckpointFiles, PicklesAreNeverOpened) {
  for (const char* name : {"pytorch_model.bin", "model.pt", "consolidated.00.pth"}) {
    const TempFolder folder;
    folder.write("config.json", to_json(tiny_llada().config));
    folder.write("training_args.bin", "x");
    // A pipe would block whoever opens it.
    ASSERT_EQ(::mkfifo(folder.path(name).c_str(), 0600), 0);
    expect_rejected([&] { load(folder.path()); }, folder.path(name), "`tabes convert IN OUT`");
  }
}

TEST(CheckpointFiles, MissingPartsAreReported) {
  const TempFolder folder;
  expect_rejected([&] { load(folder.path("none")); }, folder.path("none"), "no such folder");
  expect_rejected([&] { load(folder.path()); }, folder.path("config.json"), "cannot be opened");
  folder.write("config.json", to_json(tiny_llada().config));
  expect_rejected([&] { load(folder.path("config.json")); }, folder.path("config.json"),
                  "is not a folder");
  expect_rejected([&] { load(folder.path()); }, folder.path(), "holds neither model.safetensors");
  folder.write("training_args.bin", "x");
  expect_rejected([&] { load(folder.path()); }, folder.path(), "holds neither model.safetensors");
}

TEST(CheckpointFiles, HubCachesAreRead) {
  const TempFolder folder;
  tiny_llada().write(folder, "models--org--name/blobs/");
  const fs::path root = folder.path("models--org--name");
  fs::create_directories(root / "snapshots" / "0123abcd");
  for (const char* name : {"config.json", "model.safetensors"}) {
    const std::string blob = std::string("sha-of-") + name;
    fs::rename(root / "blobs" / name, root / "blobs" / blob);
    fs::create_symlink(fs::path("../../blobs") / blob, root / "snapshots" / "0123abcd" / name);
  }
  EXPECT_EQ(load((root / "snapshots" / "0123abcd").string())->info().family, "llada");
  EXPECT_EQ(load((root / "snapshots" / "0123abcd").string() + "//")->info().family, "llada");
}

}  // namespace
}  // namespace tabes::testing
