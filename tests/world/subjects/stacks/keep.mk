# Variables, pattern rules and functions, without a program that is started.
words := $(foreach a,a b c d e f g h,$(foreach b,1 2 3 4 5 6 7 8,$(a)$(b)))
files := $(words:%=out/%.o)
define rule
out/$(1).o: out/$(1).c out/common.h
	@:
out/$(1).c:
	@:
vars_$(1) := $(subst a,b,$(1)) $(sort $(words)) $(filter $(1)%,$(words))
endef
all: $(files)
	$(info kept $(words $(files)))
out/common.h: ; @:
$(foreach word,$(words),$(eval $(call rule,$(word))))
.PHONY: all
