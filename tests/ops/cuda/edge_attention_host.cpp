// The kernels of edge attention on the CPU. Compiled with -DSOURCE="path of kernel.cu":
// - as a library, where `launch_kernel` stands in for the CUDA driver;
// - as a program (for sanitizers), which reads a launch from a file, runs it on memory of exactly the size of each tensor, and writes the
//   tensors back.
#include "cuda_host.h"
#include SOURCE

extern "C" int launch_kernel(const char* name, unsigned grid_x, unsigned grid_y, unsigned threads, void** parameters, int reversed) {
  cuda_host::reversed = reversed;
#define CASE(kernel) \
  if (!std::strcmp(name, #kernel)) return cuda_host::launch(kernel, grid_x, grid_y, threads, parameters), 0;
  CASE(edge_attention_fwd_kernel)
  CASE(edge_attention_bwd_target_kernel)
  CASE(edge_attention_bwd_source_kernel)
  return 1;
}

// Arguments: file, kernel, grid x, grid y, threads. The file holds, for each parameter, its kind ('t'ensor, 'n'umber), its size in bytes
// as 64 bits, and its bytes; a tensor of size -1 is a null pointer.
int main(int, char** words) {
  struct Parameter {
    char kind;
    int64_t size;
    char* bytes;
  };
  std::vector<Parameter> all;
  std::FILE* file = std::fopen(words[1], "rb");
  Parameter p;
  while (std::fread(&p.kind, 1, 1, file) == 1 && std::fread(&p.size, 8, 1, file) == 1) {
    p.bytes = p.size < 0 ? nullptr : new char[p.size];
    if (p.size > 0 && std::fread(p.bytes, p.size, 1, file) != 1) return 2;
    all.push_back(p);
  }
  std::fclose(file);
  std::vector<void*> parameters;
  for (auto& each : all) parameters.push_back(each.kind == 't' ? static_cast<void*>(&each.bytes) : each.bytes);
  if (launch_kernel(words[2], std::atoi(words[3]), std::atoi(words[4]), std::atoi(words[5]), parameters.data(), 0)) return 3;
  file = std::fopen(words[1], "wb");
  for (auto& each : all)
    if (each.kind == 't' && each.size > 0) std::fwrite(each.bytes, each.size, 1, file);
  return std::fclose(file);
}
