# The target lessismore::lessismore, wherever this folder lies.
get_filename_component(_lessismore "${CMAKE_CURRENT_LIST_DIR}/../../.." ABSOLUTE)
if(NOT TARGET lessismore::lessismore)
  add_library(lessismore::lessismore SHARED IMPORTED)
  set_target_properties(lessismore::lessismore PROPERTIES
    IMPORTED_LOCATION "${_lessismore}/lib/liblessismore.so"
    IMPORTED_SONAME liblessismore.so
    INTERFACE_INCLUDE_DIRECTORIES "${_lessismore}/include")
endif()
unset(_lessismore)
