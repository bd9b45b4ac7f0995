// The safetensors reader against a written table of valid and malformed files.
#include "checkpoint/safetensors.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "checkpoint_files.h"
#include "safetensors_cases.h"

namespace tabes::testing {
namespace {

using checkpoint::SafetensorsFile;
using checkpoint::TensorInfo;

// Every tensor byte is touched, as a reader that checks offsets too late fails only then.
uint64_t read_all(const std::string& path) {
  const SafetensorsFile file(path);
  uint64_t sum = 0;
  for (const TensorInfo& info : file.tensors()) {
    std::string data(info.bytes(), '\0');
    file.read(info, 0, data.data(), data.size());
    for (const char c : data) sum += static_cast<unsigned char>(c);
  }
  return sum;
}

void run(const std::vector<FileCase>& cases) {
  const TempFolder folder;
  int number = 0;
  for (const FileCase& c : cases) {
    SCOPED_TRACE(c.name);
    const std::string name = "case" + std::to_string(number++) + ".safetensors";
    const std::string path = folder.write(name, c.bytes);
    if (c.rejection.empty()) {
      EXPECT_NO_THROW(read_all(path));
    } else {
      expect_rejected([&] { read_all(path); }, path, c.rejection);
    }
  }
}

TEST(Safetensors, ReadsValidFiles) {
  run(valid_files());
}
TEST(Safetensors, RejectsOtherKindsOfFiles) {
  run(files_of_another_kind());
}
TEST(Safetensors, RejectsBadJson) {
  run(bad_json());
}
TEST(Safetensors, RejectsBadNamesAndMetadata) {
  run(bad_names_and_metadata());
}
TEST(Safetensors, RejectsBadFields) {
  run(bad_fields());
}
TEST(Safetensors, RejectsBadLayout) {
  run(bad_layout());
}

TEST(Safetensors, ListsTensorsByName) {
  const TempFolder folder;
  const SafetensorsFile file(folder.write(
      "m.safetensors",
      SafetensorsBuilder().add("b", "I16", {2, 1}, "wxyz").add("a", "BOOL", {}, "\x01").bytes()));
  ASSERT_EQ(file.tensors().size(), 2U);
  EXPECT_EQ(file.tensors()[0].name, "a");
  const TensorInfo* b = file.find("b");
  ASSERT_NE(b, nullptr);
  EXPECT_EQ(b->shape, (std::vector<int64_t>{2, 1}));
  EXPECT_STREQ(checkpoint::name_of(b->dtype), "I16");
  std::string data(2, ' ');
  file.read(*b, 1, data.data(), 2);
  EXPECT_EQ(data, "xy");
  EXPECT_EQ(file.find("c"), nullptr);
}

TEST(Safetensors, NamesTheTensorItRejects) {
  const TempFolder folder;
  const std::string path = folder.write("m.safetensors", f32("[2]", "[0,4]", 4));
  expect_rejected([&] { SafetensorsFile file(path); }, path, "tensor \"t\"");
}

TEST(Safetensors, TakesAHundredThousandTensors) {
  std::string header = "{";
  for (int i = 0; i < 100'000; ++i) {
    header += "\"model.layers." + std::to_string(i) + ".weight\":" + byte_at(i) + ",";
  }
  header.back() = '}';
  const TempFolder folder;
  const std::string path = folder.write("m.safetensors", safetensors(header, zeros(100'000)));
  EXPECT_EQ(SafetensorsFile(path).tensors().size(), 100'000U);
}

TEST(Safetensors, RefusesMoreTensorsThanItsBound) {
  std::string header = "{";
  for (int i = 0; i <= 500'000; ++i) {
    header += "\"" + std::to_string(i) + R"(":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},)";
  }
  header.back() = '}';
  const TempFolder folder;
  const std::string path = folder.write("m.safetensors", safetensors(header));
  expect_rejected([&] { SafetensorsFile file(path); }, path, "more than 500000 tensors");
}

}  // namespace
}  // namespace tabes::testing
