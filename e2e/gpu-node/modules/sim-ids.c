// SPDX-License-Identifier: GPL-2.0-only
/*
 * Test only. PCI functions that QEMU emulates get the ids and classes of other
 * products. The kernel, and with it sysfs, uevents and the choice of a driver, then
 * knows them by these; configuration space keeps the real ones.
 *
 *   functions=ADDRESS=VENDOR:DEVICE:CLASS[:SUBVENDOR:SUBDEVICE],...
 *   virtual_functions=ADDRESS-OF-THE-PHYSICAL-FUNCTION=VENDOR:DEVICE:CLASS,...
 *
 * A function that is plugged in later gets its ids then. Load this before the drivers: a
 * driver that is bound already stays bound.
 */
#include <linux/module.h>
#include <linux/pci.h>

#define MOST 32

struct ids {
	unsigned int vendor, device, class, subvendor, subdevice;
};

struct claim {
	unsigned int domain, bus, slot, function;
	struct ids ids;
};

static char *functions[MOST];
static int function_count;
module_param_array(functions, charp, &function_count, 0444);

static char *virtual_functions[MOST];
static int virtual_count;
module_param_array(virtual_functions, charp, &virtual_count, 0444);

static struct claim claims[MOST], virtual_claims[MOST];

static int parse(const char *text, struct claim *claim)
{
	struct ids *ids = &claim->ids;
	int found;

	memset(claim, 0, sizeof(*claim));
	found = sscanf(text, "%x:%x:%x.%x=%x:%x:%x:%x:%x", &claim->domain, &claim->bus, &claim->slot,
		       &claim->function, &ids->vendor, &ids->device, &ids->class, &ids->subvendor,
		       &ids->subdevice);
	if (found == 7 || found == 9)
		return 0;
	pr_err("sim-ids: cannot read '%s'\n", text);
	return -EINVAL;
}

static void put_on(struct pci_dev *pdev, const struct ids *ids)
{
	pdev->vendor = ids->vendor;
	pdev->device = ids->device;
	pdev->class = ids->class;
	if (ids->subvendor) {
		pdev->subsystem_vendor = ids->subvendor;
		pdev->subsystem_device = ids->subdevice;
	}
}

static bool is_at(const struct pci_dev *pdev, const struct claim *claim)
{
	return pci_domain_nr(pdev->bus) == claim->domain && pdev->bus->number == claim->bus &&
	       pdev->devfn == PCI_DEVFN(claim->slot, claim->function);
}

/* Comes before the uevent of the new function and before a driver is looked for. */
static int device_added(struct notifier_block *block, unsigned long action, void *data)
{
	struct pci_dev *pdev = to_pci_dev(data);
	const struct claim *list = pdev->is_virtfn ? virtual_claims : claims;
	int i, count = pdev->is_virtfn ? virtual_count : function_count;

	if (action != BUS_NOTIFY_ADD_DEVICE)
		return NOTIFY_DONE;
	for (i = 0; i < count; i++)
		if (is_at(pci_physfn(pdev), &list[i]))
			put_on(pdev, &list[i].ids);
	return NOTIFY_OK;
}

static struct notifier_block notifier = { .notifier_call = device_added };

static int parse_all(char **texts, int count, struct claim *list)
{
	int i, ret = 0;

	for (i = 0; i < count && !ret; i++)
		ret = parse(texts[i], &list[i]);
	return ret;
}

static int __init sim_ids_init(void)
{
	struct pci_dev *pdev;
	int i, ret;

	ret = parse_all(functions, function_count, claims);
	if (!ret)
		ret = parse_all(virtual_functions, virtual_count, virtual_claims);
	if (ret)
		return ret;
	for (i = 0; i < function_count; i++) {
		pdev = pci_get_domain_bus_and_slot(claims[i].domain, claims[i].bus,
						   PCI_DEVFN(claims[i].slot, claims[i].function));
		if (!pdev)
			continue;
		put_on(pdev, &claims[i].ids);
		pci_dev_put(pdev);
	}
	return bus_register_notifier(&pci_bus_type, &notifier);
}
module_init(sim_ids_init);

MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("Test only: other ids and classes for emulated PCI functions");
