"""MQTT 5: `mqtt.subscribe` and `mqtt.publish`."""
