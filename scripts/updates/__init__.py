"""What the update of a service is made of; scripts/update_service.py puts it together."""
