# LibTorch's CUDA wheels come with a package file that fails without a CUDA toolkit, although the
# CPU libraries, which are all that tabes links, need none. For such a LibTorch this imports the
# targets c10 and torch_cpu itself and sets what TorchConfig.cmake would: Torch_FOUND, Torch_VERSION,
# TORCH_INSTALL_PREFIX and TORCH_INCLUDE_DIRS. For any other it leaves Torch_FOUND alone. Looks in
# tabes_torch_hints last; a Torch that was found before is left as it is.
macro(tabes_import_cuda_torch)
  find_file(TABES_TORCH_CONFIG TorchConfig.cmake
            HINTS ${Torch_DIR} ${CMAKE_PREFIX_PATH} ${tabes_torch_hints}
            PATH_SUFFIXES Torch share/cmake/Torch NO_CACHE)
  if(TABES_TORCH_CONFIG AND NOT Torch_FOUND)
    cmake_path(GET TABES_TORCH_CONFIG PARENT_PATH tabes_torch_dir)
    get_filename_component(tabes_torch_root "${tabes_torch_dir}/../../.." ABSOLUTE)
    if(EXISTS "${tabes_torch_root}/lib/libtorch_cuda.so")
      include("${tabes_torch_dir}/TorchConfigVersion.cmake")
      set(Torch_VERSION "${PACKAGE_VERSION}")
      set(Torch_FOUND TRUE)
      set(TORCH_INSTALL_PREFIX "${tabes_torch_root}")
      set(TORCH_INCLUDE_DIRS "${tabes_torch_root}/include"
                             "${tabes_torch_root}/include/torch/csrc/api/include")
      foreach(library c10 torch_cpu)
        if(NOT TARGET ${library})
          add_library(${library} SHARED IMPORTED)
          set_target_properties(${library} PROPERTIES
            IMPORTED_LOCATION "${tabes_torch_root}/lib/lib${library}.so"
            INTERFACE_INCLUDE_DIRECTORIES "${TORCH_INCLUDE_DIRS}")
        endif()
      endforeach()
      set_property(TARGET torch_cpu PROPERTY INTERFACE_LINK_LIBRARIES c10)
    endif()
  endif()
endmacro()
