/* The library's face towards Python: which symbols it replaces, and whether the replacements are in force. */

#define _GNU_SOURCE
#include <elf.h>
#include <link.h>
#include <string.h>

#include "machine.h"

#define VERSION 4 /* of this interface; accel/unicorn/native.py must name the same */

struct originals original;

#define NAME(result, name, parameters) #name,
static const char *const names[] = {REPLACED(NAME) CALLED(NAME)};

#define ADDRESS(result, name, parameters) (void *)name,
static void *const replacements[] = {REPLACED(ADDRESS)};

enum { NAMES = sizeof names / sizeof *names, REPLACEMENTS = sizeof replacements / sizeof *replacements };
_Static_assert(sizeof original == NAMES * sizeof(void *), "one pointer for each name");

EXPORTED int nitro_version(void)
{
    return VERSION;
}

/* Whether this host's processor can do what the library asks of it. */
EXPORTED int nitro_supported(void)
{
    return probe_sse();
}

/* The symbols of libunicorn that we need, by number; NULL after the last one. */
EXPORTED const char *nitro_symbol(int number)
{
    return number >= 0 && number < NAMES ? names[number] : NULL;
}

/* Where libunicorn's own function of that number is. */
EXPORTED void nitro_set_original(int number, void *address)
{
    ((void **)&original)[number] = address;
}

#define BUCKETS 4096

struct search {
    int found[REPLACEMENTS]; /* slots that hold our function; -1 once one holds something else */
    bool maybe[BUCKETS];     /* whether an original is in the bucket: most of the many slots are of others */
};

static unsigned bucket_of(const void *function)
{
    return (uintptr_t)function >> 4 & (BUCKETS - 1);
}

/* Look at every slot through which libunicorn calls, or hands out, a function that we replace. */
static void look_at_slots(const struct link_map *object, struct search *search)
{
    const ElfW(Rela) *tables[2] = {NULL, NULL};
    size_t sizes[2] = {0, 0};
    const ElfW(Sym) *symbols = NULL;

    for (const ElfW(Dyn) *entry = object->l_ld; entry->d_tag != DT_NULL; entry++) {
        switch (entry->d_tag) {
        case DT_RELA: tables[0] = (const void *)entry->d_un.d_ptr; break;
        case DT_RELASZ: sizes[0] = entry->d_un.d_val; break;
        case DT_JMPREL: tables[1] = (const void *)entry->d_un.d_ptr; break;
        case DT_PLTRELSZ: sizes[1] = entry->d_un.d_val; break;
        case DT_SYMTAB: symbols = (const void *)entry->d_un.d_ptr; break;
        }
    }
    if (symbols == NULL)
        return;
    for (int table = 0; table < 2; table++) {
        size_t count = tables[table] ? sizes[table] / sizeof(ElfW(Rela)) : 0;
        for (size_t at = 0; at < count; at++) {
            const ElfW(Rela) *slot = &tables[table][at];
            unsigned kind = ELF64_R_TYPE(slot->r_info);
            if (kind != R_X86_64_JUMP_SLOT && kind != R_X86_64_GLOB_DAT && kind != R_X86_64_64)
                continue;
            char *theirs = (char *)object->l_addr + symbols[ELF64_R_SYM(slot->r_info)].st_value;
            for (int number = 0; number < REPLACEMENTS && search->maybe[bucket_of(theirs)]; number++) {
                if (theirs != ((void **)&original)[number])
                    continue;
                bool ours = *(void **)(object->l_addr + slot->r_offset) == replacements[number];
                if (!ours)
                    search->found[number] = -1;
                else if (search->found[number] >= 0)
                    search->found[number]++;
            }
        }
    }
}

/* The first replacement that is not in force everywhere; NULL if all are.
 *
 * `handle` is what dlopen gave for libunicorn: glibc's and musl's are a struct link_map. */
EXPORTED const char *nitro_not_in_force(const struct link_map *handle)
{
    struct search search = {{0}, {false}};

    for (int number = 0; number < REPLACEMENTS; number++)
        search.maybe[bucket_of(((void **)&original)[number])] = true;
    look_at_slots(handle, &search);
    for (int number = 0; number < REPLACEMENTS; number++) {
        if (search.found[number] <= 0)
            return names[number];
    }
    return NULL;
}
